// Products with W in eight, six or four bits, and rows of it (see quantized.h).

#include "quantized.h"

namespace {

// What an output's codes stand for.
template <int BITS>
void expand(const Weight& weight, int output, float* to) {
  constexpr bool SIGNED = BITS == 8 && !OFFSET;  // What `unpack` gives; otherwise this is still added:
  constexpr int MIDDLE = BITS == 4 || SIGNED ? 0 : 1 << (BITS - 1);
  const int groups = (weight.inputs + GROUP - 1) / GROUP, panel = output / LANES, lane = output % LANES;
  const std::uint8_t* w = weight.codes + std::size_t(panel) * groups * GROUP * LANES * BITS / 8;
  const bf16* scales = weight.scales + std::size_t(panel) * groups * LANES * scales_of(BITS) + lane;
  w += lane / WIDTH * sizeof(bytes);
  for (int g = 0; g < groups; ++g, w += GROUP * LANES * BITS / 8, scales += LANES * scales_of(BITS)) {
    bytes steps[STEPS];
    for (int s = 0; s < STEPS; s += 2) unpack<BITS>(w, s, steps[s], steps[s + 1]);
    const float scale = widen(scales[0]), least = BITS == 4 ? widen(scales[LANES]) : 0;
    for (int k = 0; k < std::min(GROUP, weight.inputs - g * GROUP); ++k) {
      const std::uint8_t code = steps[k / QUAD][lane % WIDTH * QUAD + k % QUAD];
      *to++ = float((SIGNED ? std::int8_t(code) : code) - MIDDLE) * scale + least;
    }
  }
}

}  // namespace

// y[row][output] for `rows` rows, in fp32.
extern "C" void quantized_linear(const Weight* weight, const float* x, float* y, std::int32_t rows, std::int32_t threads) {
  Rows quantised(rows, weight->inputs);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int row = 0; row < rows; ++row)
      quantised.quantise(row, x + std::size_t(row) * weight->inputs, weight->inputs);
    const Tiles tiles(TILE, STEPS);
    Products products(rows);
    const int share = std::max(1, weight->panels / (8 * threads));  // Whoever is held up takes fewer.
#pragma omp for schedule(dynamic, share)
    for (int panel = 0; panel < weight->panels; ++panel)
      place(*weight, panel, rows, products.multiply(*weight, panel, quantised), y);
  }
}

// Some outputs' weights, [row][input] in fp32.
extern "C" void quantized_rows(const Weight* weight, const std::int64_t* outputs, float* to, std::int32_t rows) {
  const auto one = weight->bits == 8 ? expand<8> : weight->bits == 6 ? expand<6> : expand<4>;
  for (int row = 0; row < rows; ++row) one(*weight, int(outputs[row]), to + std::size_t(row) * weight->inputs);
}
