// silu(gate) · up, forward and backward, in fp32 or bf16 with fp32 in between; OpenMP.

#include "vectors.h"

#include <type_traits>

namespace {

floats sigmoid(floats x) { return 1 / (1 + exponential(-x)); }

// Calls run(at, there) for every register of `count` numbers, in the last of which there may be fewer.
template <class F>
void for_all(std::int64_t count, F run) {
  const std::int64_t whole = count / WIDTH * WIDTH;
#pragma omp parallel for schedule(static)
  for (std::int64_t at = 0; at < whole; at += WIDTH) run(at, std::integral_constant<int, WIDTH>());
  if (whole < count) run(whole, int(count - whole));
}

// The `there` numbers from x on, and zeros behind them.
template <class N>
floats some(const N* x, int there) {
  if (there == WIDTH) return widen(x);
  N last[WIDTH] = {};
  std::memcpy(last, x, there * sizeof(N));
  return widen(last);
}

template <class N>
void put(N* out, int there, floats x) {
  if (there == WIDTH) return store(out, x);
  N last[WIDTH];
  store(last, x);
  std::memcpy(out, last, there * sizeof(N));
}

template <class N>
void forward(const N* gate, const N* up, std::int64_t count, N* out) {
  for_all(count, [=](std::int64_t at, auto there) {
    const floats g = some(gate + at, there);
    put(out + at, there, g * sigmoid(g) * some(up + at, there));
  });
}

// d silu(g) / dg = σ(g) (1 + g (1 − σ(g))).
template <class N>
void backward(const N* gate, const N* up, const N* slope, std::int64_t count, N* gate_slope, N* up_slope) {
  for_all(count, [=](std::int64_t at, auto there) {
    const floats g = some(gate + at, there), s = sigmoid(g), d = some(slope + at, there);
    put(gate_slope + at, there, d * some(up + at, there) * s * (1 + g * (1 - s)));
    put(up_slope + at, there, d * g * s);
  });
}

}  // namespace

#define EXPORT(NAME, N)                                                                                             \
  extern "C" void silu_gate_##NAME(const N* gate, const N* up, std::int64_t count, N* out) {                        \
    forward(gate, up, count, out);                                                                                  \
  }                                                                                                                 \
  extern "C" void silu_gate_backward_##NAME(const N* gate, const N* up, const N* slope, std::int64_t count,         \
                                            N* gate_slope, N* up_slope) {                                           \
    backward(gate, up, slope, count, gate_slope, up_slope);                                                         \
  }
EXPORT(bf16, bf16)
EXPORT(fp32, float)
