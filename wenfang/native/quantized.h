// Weights of eight or four bits times activations of eight.
//
// A row of activations is rounded to eight bits by groups of GROUP, each with a scale of its own, so that an outlier
// coarsens only its neighbours. Integer sums within a group are exact, and floating-point ones go group by group in one
// order, so a row's result does not depend on which rows stand beside it.
//
// W lies in panels of LANES outputs: for each four neighbouring inputs, LANES × 4 bytes. Four-bit weights take two such
// steps in one: the earlier in the low halves of the bytes.

#pragma once

#include "vectors.h"

#include <algorithm>
#include <memory>

namespace {

constexpr int LANES = 16;  // Outputs in a panel.
constexpr int QUAD = 4;    // Inputs multiplied at once.
constexpr int GROUP = 32;  // Inputs that share a scale.
constexpr int STEPS = GROUP / QUAD;
constexpr int AHEAD = 4096;  // Bytes of W fetched ahead: the processor's own guesses end at each page.
constexpr int PARTS = LANES / WIDTH;  // Registers that the outputs of a panel take.
constexpr int ROWS = WIDTH == 16 ? 8 : 4;  // Rows that share a look at W; their sums fill half of the registers at most.

using bytes = std::uint8_t __attribute__((vector_size(WIDTH * QUAD)));

// `dot`: sum[lane] += Σ w[lane][i] · x[i] for i in 0 … 3. `open` undoes what was added to each eight-bit weight where
// `dot` wants them signed; ZERO is what stays added. `dot4` is `dot` for weights of 0 … 15, whose sums over a group may
// be kept in a form of their own until `close4`.
#if defined(__AVX512VNNI__)
constexpr int ZERO = 128;
ints dot(ints sum, bytes w, std::int32_t x) {
  return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
}
ints dot4(ints sum, bytes w, std::int32_t x) { return dot(sum, w, x); }
ints close4(ints sum) { return sum; }
bytes open(bytes w) { return w; }
#else
constexpr int ZERO = 0;
bytes open(bytes w) { return w ^ 128; }
#if defined(__AVX2__)
// |w| unsigned, its sign given to x: two products of ± 127 fit into 16 bits.
ints dot(ints sum, bytes w, std::int32_t x) {
  const __m256i weights = (__m256i)w, four = _mm256_sign_epi8(_mm256_set1_epi32(x), weights);
  return sum + (ints)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(weights), four), _mm256_set1_epi16(1));
}
// In 16 bits, which hold the STEPS · 2 products of a group: at most 16 · 15 · 127.
ints dot4(ints sum, bytes w, std::int32_t x) {
  return (ints)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(x)));
}
ints close4(ints sum) { return (ints)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
#else
#if defined(__ARM_FEATURE_DOTPROD)
ints dot(ints sum, bytes w, std::int32_t x) {
  return (ints)vdotq_s32((int32x4_t)sum, (int8x16_t)w, vreinterpretq_s8_s32(vdupq_n_s32(x)));
}
#else
ints dot(ints sum, bytes w, std::int32_t x) {
  std::int8_t four[QUAD];
  std::memcpy(four, &x, sizeof four);
  for (int lane = 0; lane < WIDTH; ++lane)
    for (int i = 0; i < QUAD; ++i) sum[lane] += std::int8_t(w[lane * QUAD + i]) * four[i];
  return sum;
}
#endif
ints dot4(ints sum, bytes w, std::int32_t x) { return dot(sum, w, x); }
ints close4(ints sum) { return sum; }
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
void panel8(const std::uint8_t* w, const bf16* scales, const Rows& x, int row, float* out) {
  const std::ptrdiff_t groups = x.groups, first = row * groups;
  const std::int8_t* codes = x.codes.get() + first * GROUP;
  const std::int32_t* zeros = x.zeros.get() + first;
  const float* steps = x.scales.get() + first;
  floats sums[R][PARTS] = {};
  for (int g = 0; g < groups; ++g, w += LANES * GROUP, scales += LANES) {
    ints products[R][PARTS];
    for (int r = 0; r < R; ++r)
      for (int part = 0; part < PARTS; ++part) products[r][part] = ints{} + zeros[r * groups + g];
    for (int s = 0; s < STEPS; ++s) {
      const std::uint8_t* four = w + s * LANES * QUAD;
      __builtin_prefetch(four + AHEAD);
      bytes weights[PARTS];
      for (int part = 0; part < PARTS; ++part) weights[part] = open(read<bytes>(four + part * sizeof(bytes)));
      for (int r = 0; r < R; ++r) {
        const auto its = read<std::int32_t>(codes + (r * groups + g) * GROUP + s * QUAD);
        for (int part = 0; part < PARTS; ++part) products[r][part] = hold(dot(products[r][part], weights[part], its));
      }
    }
    for (int part = 0; part < PARTS; ++part) {
      const floats scale = widen(scales + part * WIDTH);
      for (int r = 0; r < R; ++r)
        sums[r][part] = add_product(sums[r][part], to_float(products[r][part]), scale * steps[r * groups + g]);
    }
  }
  std::memcpy(out, sums, sizeof sums);
}

// One panel for R rows, four bits.
template <int R>
void panel4(const std::uint8_t* w, const bf16* scales, const Rows& x, int row, float* out) {
  const std::ptrdiff_t groups = x.groups, first = row * groups;
  const std::int8_t* codes = x.codes.get() + first * GROUP;
  const float *steps = x.scales.get() + first, *totals = x.sums.get() + first;
  floats sums[R][PARTS] = {};
  for (int g = 0; g < groups; ++g, w += LANES * GROUP / 2, scales += 2 * LANES) {
    ints products[R][PARTS] = {};
#pragma GCC unroll 8
    for (int s = 0; s < STEPS; ++s) {
      const std::uint8_t* eight = w + s / 2 * LANES * QUAD;
      if (s % 2 == 0) __builtin_prefetch(eight + AHEAD);
      bytes weights[PARTS];
      for (int part = 0; part < PARTS; ++part) {
        const bytes both = read<bytes>(eight + part * sizeof(bytes));
        weights[part] = (s % 2 == 0 ? both : (bytes)((words)both >> 4)) & 15;
      }
      for (int r = 0; r < R; ++r) {
        const auto its = read<std::int32_t>(codes + (r * groups + g) * GROUP + s * QUAD);
        for (int part = 0; part < PARTS; ++part) products[r][part] = hold(dot4(products[r][part], weights[part], its));
      }
    }
    for (int part = 0; part < PARTS; ++part) {
      const floats scale = widen(scales + part * WIDTH), least = widen(scales + LANES + part * WIDTH);
      for (int r = 0; r < R; ++r) {
        const std::ptrdiff_t at = r * groups + g;
        const floats whole = add_product(least * totals[at], to_float(close4(products[r][part])), scale);
        sums[r][part] = add_product(sums[r][part], whole, spread(steps[at]));
      }
    }
  }
  std::memcpy(out, sums, sizeof sums);
}

template <int R>
int some_rows(const Weight& weight, int panel, const Rows& x, int row, int rows, float* out) {
  const std::size_t width = std::size_t(x.groups) * GROUP;
  const std::uint8_t* w = weight.codes + panel * width * LANES * weight.bits / 8;
  const bf16* scales = weight.scales + std::size_t(panel) * x.groups * LANES * (weight.bits == 8 ? 1 : 2);
  for (; row + R <= rows; row += R) (weight.bits == 8 ? panel8<R> : panel4<R>)(w, scales, x, row, out + row * LANES);
  return row;
}

// The outputs [row][lane] of one panel for all rows, with the bias (whose last panel is filled up, too).
void multiply(const Weight& weight, int panel, const Rows& x, int rows, float* out) {
  int row = some_rows<ROWS>(weight, panel, x, 0, rows, out);
  row = some_rows<4>(weight, panel, x, row, rows, out);
  row = some_rows<2>(weight, panel, x, row, rows, out);
  some_rows<1>(weight, panel, x, row, rows, out);
  if (weight.bias)
    for (row = 0; row < rows; ++row)
      for (int lane = 0; lane < LANES; ++lane)
        out[row * LANES + lane] += weight.bias[std::size_t(panel) * LANES + lane];
}

// Put a panel's outputs where they belong in rows of y.
void place(const Weight& weight, int panel, int rows, const float* out, float* y) {
  const std::size_t kept = std::min(LANES, weight.outputs - panel * LANES) * sizeof(float);
  for (int row = 0; row < rows; ++row)
    std::memcpy(y + std::size_t(row) * weight.outputs + std::size_t(panel) * LANES, out + row * LANES, kept);
}

}  // namespace
