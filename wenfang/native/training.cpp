// What a training step computes beside products and attention: silu(gate) · up, and the cross-entropy of logits, each with
// its gradient. In fp32, or in bf16 with fp32 in between; OpenMP.

#include "vectors.h"

#include <cmath>
#include <limits>
#include <type_traits>
#include <vector>

namespace {

constexpr float NONE = std::numeric_limits<float>::lowest();  // A logit whose power is 0.

// The `there` numbers from x on, and `rest` behind them in a register.
template <class N>
floats some(const N* x, int there, float rest = 0) {
  if (there >= WIDTH) return widen(x);
  floats found = floats{} + rest;
  for (int i = 0; i < there; ++i) found[i] = widen(x[i]);
  return found;
}

// Puts the `there` numbers of a register, or all of it.
template <class N>
void put(N* out, int there, floats x) {
  if (there >= WIDTH) return store(out, x);
  N last[WIDTH];
  store(last, x);
  std::memcpy(out, last, there * sizeof(N));
}

floats sigmoid(floats x) { return 1 / (1 + exponential(-x)); }

// Calls run(at, there) for every register of `count` numbers, in the last of which there may be fewer.
template <class F>
void for_all(std::int64_t count, F run) {
  const std::int64_t whole = count / WIDTH * WIDTH;
#pragma omp parallel for schedule(static)
  for (std::int64_t at = 0; at < whole; at += WIDTH) run(at, std::integral_constant<int, WIDTH>());
  if (whole < count) run(whole, int(count - whole));
}

template <class N>
void silu_gate(const N* gate, const N* up, std::int64_t count, N* out) {
  for_all(count, [=](std::int64_t at, auto there) {
    const floats g = some(gate + at, there);
    put(out + at, there, g * sigmoid(g) * some(up + at, there));
  });
}

// d silu(g) / dg = σ(g) (1 + g (1 − σ(g))).
template <class N>
void silu_gate_backward(const N* gate, const N* up, const N* slope, std::int64_t count, N* gate_slope, N* up_slope) {
  for_all(count, [=](std::int64_t at, auto there) {
    const floats g = some(gate + at, there), s = sigmoid(g), d = some(slope + at, there);
    put(gate_slope + at, there, d * some(up + at, there) * s * (1 + g * (1 - s)));
    put(up_slope + at, there, d * g * s);
  });
}

// A row of logits is read three times while the first caches hold it: for the highest, for powers of e, which are kept in
// fp32, and for the gradient made of them, which takes its place. So each costs one exponential, and nothing else exists
// in fp32.
//
// nats = (1 − share) (Z − l_t) + share (Z − mean l) + z Z², where Z is the log of the normaliser, and its gradient; 0 where
// there is no target. All is NaN where a logit is none or infinite, and the nats where the target is none of them.
template <class N>
void cross_entropy(N* logits, const std::int64_t* targets, std::int64_t rows, int width, float share, float z,
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
      for (int at = 0; at < width; at += WIDTH) {
        const floats logit = some(x + at, width - at, NONE);
        most = logit > most ? logit : most;
        all += masked(between(at, 0, width), logit);
      }
      const float highest = reduce(most, [](floats a, floats b) { return a > b ? a : b; });
      for (int at = 0; at < width; at += WIDTH) {
        const floats power = exponential(some(x + at, width - at, NONE) - highest);
        write(&powers[at], power);
        powers_sum += power;
      }
      const float sum = total(powers_sum), mean = total(all) / width;
      const float normaliser = highest + std::log(sum) + 0 * mean;
      nats[row] = normaliser - (1 - share) * widen(x[target]) - share * mean + z * normaliser * normaliser;
      const float scale = (1 + 2 * z * normaliser) / sum, spread = share / width;
      const auto learn = [&](int at, float seen) {
        floats gradient = read<floats>(&powers[at]) * scale - spread;
        if (seen) gradient[target - at] -= seen;
        put(x + at, width - at, gradient);
      };
      for (int at = 0; at < width; at += WIDTH) learn(at, 0);
      learn(target / WIDTH * WIDTH, 1 - share);
    }
  }
}

}  // namespace

#define EXPORT(NAME, N)                                                                                             \
  extern "C" void silu_gate_##NAME(const N* gate, const N* up, std::int64_t count, N* out) {                        \
    silu_gate(gate, up, count, out);                                                                                \
  }                                                                                                                 \
  extern "C" void silu_gate_backward_##NAME(const N* gate, const N* up, const N* slope, std::int64_t count,         \
                                            N* gate_slope, N* up_slope) {                                           \
    silu_gate_backward(gate, up, slope, count, gate_slope, up_slope);                                               \
  }                                                                                                                 \
  extern "C" void cross_entropy_##NAME(N* logits, const std::int64_t* targets, std::int64_t rows,                   \
                                       std::int64_t width, float share, float z, float* nats) {                     \
    cross_entropy(logits, targets, rows, width, share, z, nats);                                                    \
  }
EXPORT(bf16, bf16)
EXPORT(fp32, float)
