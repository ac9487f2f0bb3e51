// Vectors of LANES numbers, and weights of eight or four bits times activations of eight.
//
// A row of activations is rounded to eight bits by groups of GROUP, each with a scale of its own, so that an outlier
// coarsens only its neighbours. Integer sums within a group are exact, and floating-point ones go group by group in one
// order, so a row's result does not depend on which rows stand beside it.
//
// W lies in panels of LANES outputs: for each four neighbouring inputs, LANES × 4 bytes. Four-bit weights take two such
// steps in one: the earlier in the low halves of the bytes.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

constexpr int LANES = 16;  // Outputs in a panel.
constexpr int QUAD = 4;    // Inputs multiplied at once.
constexpr int GROUP = 32;  // Inputs that share a scale.
constexpr int STEPS = GROUP / QUAD;
constexpr int ROWS = 8;    // Rows that share a look at W; their sums fill half of the registers.
constexpr int AHEAD = 4096;  // Bytes of W fetched ahead: the processor's own guesses end at each page.

using ints = std::int32_t __attribute__((vector_size(LANES * 4)));
using floats = float __attribute__((vector_size(LANES * 4)));
using bytes = std::uint8_t __attribute__((vector_size(LANES * QUAD)));
using words = std::uint32_t __attribute__((vector_size(LANES * 4)));
using halves = std::uint16_t __attribute__((vector_size(LANES * 2)));
using bf16 = std::uint16_t;

template <class T>
T read(const void* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

template <class T>
void write(void* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

floats to_float(ints x) { return __builtin_convertvector(x, floats); }

floats widen(const bf16* x) { return (floats)(__builtin_convertvector(read<halves>(x), words) << 16); }

// What was added to each eight-bit weight, as `dot` sees it: where it wants them signed, nothing.
#if defined(__AVX512VNNI__)
constexpr int ZERO = 128;
// sum[lane] += Σ w[lane][i] · x[i] for i in 0 … 3.
ints dot(ints sum, bytes w, std::int32_t x) {
  return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
}
bytes open(bytes w) { return w; }
#else
constexpr int ZERO = 0;
bytes open(bytes w) { return w ^ 128; }
#if defined(__AVX2__)
ints dot(ints sum, bytes w, std::int32_t x) {
  const __m256i four = _mm256_set1_epi32(x), ones = _mm256_set1_epi16(1);
  __m256i parts[2];
  std::memcpy(parts, &w, sizeof w);
  for (auto& part : parts)  // |w| unsigned, its sign given to x: two products of ± 127 fit into 16 bits.
    part = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(part), _mm256_sign_epi8(four, part)), ones);
  ints products;
  std::memcpy(&products, parts, sizeof products);
  return sum + products;
}
#elif defined(__ARM_FEATURE_DOTPROD)
ints dot(ints sum, bytes w, std::int32_t x) {
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(x));
  int32x4_t sums[4];
  int8x16_t weights[4];
  std::memcpy(sums, &sum, sizeof sum);
  std::memcpy(weights, &w, sizeof w);
  for (int i = 0; i < 4; ++i) sums[i] = vdotq_s32(sums[i], weights[i], four);
  std::memcpy(&sum, sums, sizeof sum);
  return sum;
}
#else
ints dot(ints sum, bytes w, std::int32_t x) {
  std::int8_t four[QUAD];
  std::memcpy(four, &x, sizeof four);
  for (int lane = 0; lane < LANES; ++lane)
    for (int i = 0; i < QUAD; ++i) sum[lane] += std::int8_t(w[lane * QUAD + i]) * four[i];
  return sum;
}
#endif
#endif

// Rows of activations in eight bits, the last group filled up with zeros.
struct Rows {
  int groups;
  std::unique_ptr<std::int8_t[]> codes;
  std::unique_ptr<float[]> scales, sums;     // Of each group: its step, and the sum of its codes.
  std::unique_ptr<std::int32_t[]> zeros;     // What makes up for the ZERO in each weight.

  Rows(int count, int inputs)
      : groups((inputs + GROUP - 1) / GROUP), codes(new std::int8_t[std::size_t(count) * groups * GROUP]),
        scales(new float[std::size_t(count) * groups]), sums(new float[std::size_t(count) * groups]),
        zeros(new std::int32_t[std::size_t(count) * groups]) {}

  void quantise(int row, const float* x, int inputs) {
    for (int g = 0; g < groups; ++g) {
      const std::size_t at = std::size_t(row) * groups + g;
      const int there = std::min(GROUP, inputs - g * GROUP);
      float part[GROUP] = {};
      std::memcpy(part, x + std::size_t(g) * GROUP, there * sizeof(float));
      std::uint32_t largest = 0;  // The bits of numbers without sign are in the order of the numbers.
      for (int k = 0; k < GROUP; ++k) largest = std::max(largest, read<std::uint32_t>(part + k) & 0x7FFFFFFF);
      const float most = read<float>(&largest), inverse = most > 0 ? 127 / most : 0;
      std::int8_t* code = codes.get() + at * GROUP;
      int sum = 0;
      for (int k = 0; k < GROUP; ++k) {
        const float scaled = part[k] * inverse;
        const int whole = int(scaled + (scaled < 0 ? -0.5f : 0.5f));
        code[k] = std::int8_t(whole);
        sum += whole;
      }
      scales[at] = most / 127;
      sums[at] = float(sum);
      zeros[at] = -ZERO * sum;
    }
  }
};

// As the caller lays it out: a weight of `bits` bits in panels, each with the inputs filled up to a multiple of GROUP.
struct Weight {
  const std::uint8_t* codes;
  const bf16* scales;  // bf16 by group and output; of four bits, each group's scales and then its minima.
  const float* bias;
  std::int32_t bits, inputs, outputs, panels;
};

// One panel for R rows, eight bits.
template <int R>
void panel8(const std::uint8_t* w, const bf16* scales, const Rows& x, int row, floats* out) {
  const std::size_t first = std::size_t(row) * x.groups;
  const std::int8_t* codes = x.codes.get() + first * GROUP;
  const std::int32_t* zeros = x.zeros.get() + first;
  const float* steps = x.scales.get() + first;
  floats sums[R] = {};
  for (int g = 0; g < x.groups; ++g) {
    ints products[R];
    for (int r = 0; r < R; ++r) products[r] = ints{} + zeros[r * x.groups + g];
    for (int s = 0; s < STEPS; ++s, w += LANES * QUAD) {
      __builtin_prefetch(w + AHEAD);
      const bytes weights = open(read<bytes>(w));
      for (int r = 0; r < R; ++r)
        products[r] = dot(products[r], weights, read<std::int32_t>(codes + (r * x.groups + g) * GROUP + s * QUAD));
    }
    const floats scale = widen(scales + std::size_t(g) * LANES);
    for (int r = 0; r < R; ++r) sums[r] += to_float(products[r]) * scale * steps[r * x.groups + g];
  }
  for (int r = 0; r < R; ++r) out[r] = sums[r];
}

// One panel for R rows, four bits.
template <int R>
void panel4(const std::uint8_t* w, const bf16* scales, const Rows& x, int row, floats* out) {
  const std::size_t first = std::size_t(row) * x.groups;
  const std::int8_t* codes = x.codes.get() + first * GROUP;
  const float *steps = x.scales.get() + first, *totals = x.sums.get() + first;
  floats sums[R] = {};
  for (int g = 0; g < x.groups; ++g, scales += 2 * LANES) {
    ints products[R] = {};
    for (int s = 0; s < STEPS; s += 2, w += LANES * QUAD) {
      __builtin_prefetch(w + AHEAD);
      const bytes both = read<bytes>(w);
      const bytes low = both & 15, high = (bytes)((words)both >> 4) & 15;
      for (int r = 0; r < R; ++r) {
        const std::int8_t* at = codes + (r * x.groups + g) * GROUP + s * QUAD;
        products[r] = dot(products[r], low, read<std::int32_t>(at));
        products[r] = dot(products[r], high, read<std::int32_t>(at + QUAD));
      }
    }
    const floats scale = widen(scales), least = widen(scales + LANES);
    for (int r = 0; r < R; ++r) {
      const int at = r * x.groups + g;
      sums[r] += (to_float(products[r]) * scale + least * totals[at]) * steps[at];
    }
  }
  for (int r = 0; r < R; ++r) out[r] = sums[r];
}

template <int R>
int some_rows(const Weight& weight, int panel, const Rows& x, int row, int rows, floats* out) {
  const std::size_t width = std::size_t(x.groups) * GROUP;
  const std::uint8_t* w = weight.codes + panel * width * LANES * weight.bits / 8;
  const bf16* scales = weight.scales + std::size_t(panel) * x.groups * LANES * (weight.bits == 8 ? 1 : 2);
  for (; row + R <= rows; row += R)
    weight.bits == 8 ? panel8<R>(w, scales, x, row, out + row) : panel4<R>(w, scales, x, row, out + row);
  return row;
}

// The outputs of one panel for all rows, with the bias (whose last panel is filled up, too).
void multiply(const Weight& weight, int panel, const Rows& x, int rows, floats* out) {
  int row = some_rows<ROWS>(weight, panel, x, 0, rows, out);
  row = some_rows<4>(weight, panel, x, row, rows, out);
  row = some_rows<2>(weight, panel, x, row, rows, out);
  some_rows<1>(weight, panel, x, row, rows, out);
  if (weight.bias)
    for (row = 0; row < rows; ++row) out[row] += read<floats>(weight.bias + std::size_t(panel) * LANES);
}

// Put a panel's outputs where they belong in rows of y.
void place(const Weight& weight, int panel, int rows, const floats* out, float* y) {
  const std::size_t kept = std::min(LANES, weight.outputs - panel * LANES) * sizeof(float);
  for (int row = 0; row < rows; ++row)
    std::memcpy(y + std::size_t(row) * weight.outputs + std::size_t(panel) * LANES, &out[row], kept);
}

}  // namespace
