// Cross-entropy of rows of logits, whose places its gradient takes, in fp32 or bf16, with fp32 sums; OpenMP.
//
// A row is read three times while the first caches hold it: for the highest logit, for powers of e, which are kept in
// fp32, and for the gradient made of them. So each logit costs one exponential, and none of this exists as a whole.

#include "vectors.h"

#include <cmath>
#include <limits>
#include <vector>

namespace {

constexpr float NONE = std::numeric_limits<float>::lowest();  // A logit whose power is 0.

// The numbers from `at` on, with NONE behind the last of `width`.
template <class N>
floats some(const N* x, std::int64_t at, std::int64_t width) {
  if (at + WIDTH <= width) return widen(x + at);
  floats found = floats{} + NONE;
  for (int i = 0; at + i < width; ++i) found[i] = widen(x[at + i]);
  return found;
}

template <class N>
void put(N* out, std::int64_t at, std::int64_t width, floats x) {
  if (at + WIDTH <= width) return store(out + at, x);
  N last[WIDTH];
  store(last, x);
  std::memcpy(out + at, last, (width - at) * sizeof(N));
}

// nats = (1 − share) (Z − l_t) + share (Z − mean l) + z Z², where Z is the log of the normaliser, and its gradient; 0 where
// there is no target. All is NaN where a logit is none or infinite, and the nats where the target is none of them.
template <class N>
void lose(N* logits, const std::int64_t* targets, std::int64_t rows, std::int64_t width, float share, float z,
          float* nats) {
#pragma omp parallel
  {
    std::vector<float> powers(width + WIDTH);
#pragma omp for schedule(static)
    for (std::int64_t row = 0; row < rows; ++row) {
      N* x = logits + row * width;
      const std::int64_t target = targets[row];
      if (target < 0 || target >= width) {
        nats[row] = target < 0 ? 0 : std::numeric_limits<float>::quiet_NaN();
        std::memset(x, 0, width * sizeof(N));
        continue;
      }
      floats most = floats{} + NONE, all{}, powers_sum{};
      for (std::int64_t at = 0; at < width; at += WIDTH) {
        const floats logit = some(x, at, width);
        most = logit > most ? logit : most;
        all += masked(between(at, 0, width), logit);
      }
      const float highest = reduce(most, [](floats a, floats b) { return a > b ? a : b; });
      for (std::int64_t at = 0; at < width; at += WIDTH) {
        const floats power = exponential(some(x, at, width) - highest);
        write(&powers[at], power);
        powers_sum += power;
      }
      const float sum = total(powers_sum), mean = total(all) / width;
      const float normaliser = highest + std::log(sum) + 0 * mean;
      nats[row] = normaliser - (1 - share) * widen(x[target]) - share * mean + z * normaliser * normaliser;
      const float scale = (1 + 2 * z * normaliser) / sum, spread = share / width;
      const auto learn = [&](std::int64_t at, float seen) {
        floats gradient = read<floats>(&powers[at]) * scale - spread;
        if (seen) gradient[target - at] -= seen;
        put(x, at, width, gradient);
      };
      for (std::int64_t at = 0; at < width; at += WIDTH) learn(at, 0);
      learn(target / WIDTH * WIDTH, 1 - share);
    }
  }
}

}  // namespace

#define EXPORT(NAME, N)                                                                                       \
  extern "C" void cross_entropy_##NAME(N* logits, const std::int64_t* targets, std::int64_t rows,             \
                                       std::int64_t width, float share, float z, float* nats) {               \
    lose(logits, targets, rows, width, share, z, nats);                                                       \
  }
EXPORT(bf16, bf16)
EXPORT(fp32, float)
