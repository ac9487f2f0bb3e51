// y = x · Wᵀ + b with W in eight or four bits (see quantized.h).

#include "quantized.h"

// y[row][output] for `rows` rows, in fp32.
extern "C" void quantized_linear(const Weight* weight, const float* x, float* y, std::int32_t rows, std::int32_t threads) {
  Rows quantised(rows, weight->inputs);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int row = 0; row < rows; ++row)
      quantised.quantise(row, x + std::size_t(row) * weight->inputs, weight->inputs);
    const std::unique_ptr<float[]> out(new float[std::size_t(rows) * LANES]);
    const int share = std::max(1, weight->panels / (8 * threads));  // Whoever is held up takes fewer.
#pragma omp for schedule(dynamic, share)
    for (int panel = 0; panel < weight->panels; ++panel) {
      multiply(*weight, panel, quantised, rows, out.get());
      place(*weight, panel, rows, out.get(), y);
    }
  }
}
