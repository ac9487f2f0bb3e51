// Weights of eight, six or four bits times activations of eight.
//
// A row of activations is rounded to eight bits by groups of GROUP, each with a scale of its own, so that an outlier
// coarsens only its neighbours. Integer sums within a group are exact, and floating-point ones go group by group in one
// order, so a row's result does not depend on which rows stand beside it.
//
// W lies in panels of LANES outputs: for each four neighbouring inputs, a step, LANES × 4 bytes. Four-bit weights take two
// steps in the bytes of one: the earlier in their low halves. Six-bit weights take four in those of three: two bits each
// of the fourth on top of the others.

#pragma once

#include "tiles.h"

#include <algorithm>
#include <cfloat>
#include <memory>
#include <vector>

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
// `dot` wants them signed; where it does not, OFFSET stays added. `dot4` is `dot` for weights of 0 … 15, whose sums over a
// group may be kept in a form of their own until `close4`; `dot6` takes two steps of weights of 0 … 63.
#if defined(__AVX512VNNI__)
constexpr bool OFFSET = true;
ints dot(ints sum, bytes w, std::int32_t x) {
  return (ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, _mm512_set1_epi32(x));
}
bytes open(bytes w) { return w; }
#else
constexpr bool OFFSET = false;
bytes open(bytes w) { return w ^ 128; }
#if defined(__AVX2__)
// |w| unsigned, its sign given to x: two products of ± 127 fit into 16 bits.
ints dot(ints sum, bytes w, std::int32_t x) {
  const __m256i weights = (__m256i)w, four = _mm256_sign_epi8(_mm256_set1_epi32(x), weights);
  return sum + (ints)_mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(weights), four), _mm256_set1_epi16(1));
}
#elif defined(__ARM_FEATURE_DOTPROD)
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
#endif

#if defined(__AVX2__) && !defined(__AVX512VNNI__)
__m256i pairs(bytes w, std::int32_t x) { return _mm256_maddubs_epi16((__m256i)w, _mm256_set1_epi32(x)); }
// 16 bits hold the STEPS · 2 products of a group: at most 16 · 15 · 127.
ints dot4(ints sum, bytes w, std::int32_t x) { return (ints)_mm256_add_epi16((__m256i)sum, pairs(w, x)); }
ints close4(ints sum) { return (ints)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
// … and four products of 63 · 127.
ints dot6(ints sum, bytes w, std::int32_t x, bytes v, std::int32_t y) {
  return sum + (ints)_mm256_madd_epi16(_mm256_add_epi16(pairs(w, x), pairs(v, y)), _mm256_set1_epi16(1));
}
#else
ints dot4(ints sum, bytes w, std::int32_t x) { return dot(sum, w, x); }
ints close4(ints sum) { return sum; }
ints dot6(ints sum, bytes w, std::int32_t x, bytes v, std::int32_t y) { return dot(dot(sum, w, x), v, y); }
#endif

// What GROUP neighbouring numbers of a row of activations have beside their codes of eight bits.
struct Scale {
  float step;         // What the codes count.
  float total;        // The sum of the numbers, within fp32: infinity times a minimum of zero would be no number.
  std::int32_t zero;  // What makes up for 128 added to each weight.
};

// Rows of activations: group 0 of every row, then group 1 of every row, … The last group is filled up with zeros.
struct Rows {
  struct Codes {
    alignas(GROUP) std::int8_t at[GROUP];  // Within a line of the cache.
  };

  const int count, groups;
  const std::unique_ptr<Codes[]> codes;
  const std::unique_ptr<Scale[]> scales;

  Rows(int rows, int inputs)
      : count(rows), groups((inputs + GROUP - 1) / GROUP), codes(new Codes[std::size_t(rows) * groups]),
        scales(new Scale[std::size_t(rows) * groups]) {}

  void quantise(int row, const float* x, int inputs) {
    float last[GROUP] = {};
    for (int g = 0; g < groups; ++g) {
      const std::size_t at = std::size_t(g) * count + row;
      const float* part = x + std::size_t(g) * GROUP;
      if (const int there = inputs - g * GROUP; there < GROUP)
        part = static_cast<const float*>(std::memcpy(last, part, there * sizeof(float)));
      std::uint32_t largest = 0;  // The bits of numbers without sign are in the order of the numbers.
      for (int k = 0; k < GROUP; ++k) largest = std::max(largest, read<std::uint32_t>(part + k) & 0x7FFFFFFF);
      const float most = read<float>(&largest), inverse = most > 0 ? 127 / most : 0, step = most / 127;
      int sum = 0;
      for (int k = 0; k < GROUP; ++k) {
        const float scaled = part[k] * inverse;
        const int whole = int(scaled + (scaled < 0 ? -0.5f : 0.5f));
        codes[at].at[k] = std::int8_t(whole);
        sum += whole;
      }
      scales[at] = {step, std::clamp(step * float(sum), -FLT_MAX, FLT_MAX), -128 * sum};
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

// Numbers that a group of an output has beside its codes.
constexpr int scales_of(int bits) { return bits == 4 ? 2 : 1; }

// Steps s and s + 1 (s even) of a group's weights; at `w`, a part of a panel begins in it.
template <int BITS>
void unpack(const std::uint8_t* w, int s, bytes& first, bytes& second) {
  constexpr int STEP = LANES * QUAD;
  if constexpr (BITS == 8) {
    first = open(read<bytes>(w + s * STEP));
    second = open(read<bytes>(w + (s + 1) * STEP));
  } else if constexpr (BITS == 4) {
    const bytes both = read<bytes>(w + s / 2 * STEP);
    first = both & 15;
    second = (bytes)((words)both >> 4) & 15;
  } else {
    w += s / 4 * 3 * STEP;
    const bytes a = read<bytes>(w), b = read<bytes>(w + STEP), c = read<bytes>(w + 2 * STEP);
    const bool early = s % 4 == 0;
    first = (early ? a : c) & 63;
    second = early ? b & 63
                   : ((bytes)((words)a >> 6) & 3) | ((bytes)((words)b >> 4) & 12) | ((bytes)((words)c >> 2) & 48);
  }
}

// sum + w · x + v · y, in the form in which a group's sums are kept.
template <int BITS>
ints dots(ints sum, bytes w, std::int32_t x, bytes v, std::int32_t y) {
  if constexpr (BITS == 8) return hold(dot(hold(dot(sum, w, x)), v, y));
  if constexpr (BITS == 4) return hold(dot4(hold(dot4(sum, w, x)), v, y));
  return hold(dot6(sum, w, x, v, y));
}

// Where a group's sums begin, so that they end as if nothing had been added to the weights: 128 to eight bits, a fourth of
// that to six. Four bits have their minima instead.
template <int BITS>
ints start(std::int32_t zero) {
  return BITS == 6 ? (ints{} + zero) >> 2 : BITS == 8 && OFFSET ? ints{} + zero : ints{};
}

// One panel for R rows from number `row` on.
template <int BITS, int R>
void compute(const std::uint8_t* w, const bf16* scales, const Rows& rows, int row, float* out) {
  constexpr int BYTES = LANES * QUAD * 2 * BITS / 8;  // Of two steps.
  floats sums[R][PARTS] = {};
  const Rows::Codes* codes = rows.codes.get() + row;
  const Scale* x = rows.scales.get() + row;
  for (int g = 0; g < rows.groups; ++g, w += STEPS / 2 * BYTES, scales += LANES * scales_of(BITS)) {
    ints products[R][PARTS];
    for (int r = 0; r < R; ++r)
      for (int part = 0; part < PARTS; ++part) products[r][part] = start<BITS>(x[r].zero);
#pragma GCC unroll 4
    for (int s = 0; s < STEPS; s += 2) {
      for (int line = 0; line < BYTES; line += 64) __builtin_prefetch(w + s / 2 * BYTES + line + AHEAD);
      bytes one[PARTS], two[PARTS];
      for (int part = 0; part < PARTS; ++part) unpack<BITS>(w + part * sizeof(bytes), s, one[part], two[part]);
      for (int r = 0; r < R; ++r) {
        const std::int8_t* its = codes[r].at + s * QUAD;
        const auto x_one = read<std::int32_t>(its), x_two = read<std::int32_t>(its + QUAD);
        for (int part = 0; part < PARTS; ++part)
          products[r][part] = dots<BITS>(products[r][part], one[part], x_one, two[part], x_two);
      }
    }
    for (int part = 0; part < PARTS; ++part) {
      const floats scale = widen(scales + part * WIDTH);
      for (int r = 0; r < R; ++r) {
        floats& sum = sums[r][part];
        if constexpr (BITS == 4) {
          sum = add_product(sum, widen(scales + LANES + part * WIDTH), spread(x[r].total));
          sum = add_product(sum, to_float(close4(products[r][part])), scale * x[r].step);
        } else {
          sum = add_product(sum, to_float(products[r][part]), scale * x[r].step);
        }
      }
    }
    codes += rows.count, x += rows.count;
  }
  std::memcpy(out, sums, sizeof sums);
}

#if HAS_TILES
// A panel's codes for tiles: signed, one step after the other.
template <int BITS>
void open_panel(const std::uint8_t* w, int groups, std::uint8_t* to) {
  constexpr std::uint8_t MIDDLE = BITS == 4 ? 0 : 1 << (BITS - 1);
  for (int g = 0; g < groups; ++g, w += GROUP * LANES * BITS / 8)
    for (int s = 0; s < STEPS; s += 2, to += 2 * sizeof(bytes)) {
      bytes one, two;
      unpack<BITS>(w, s, one, two);
      write(to, one - MIDDLE), write(to + sizeof one, two - MIDDLE);
    }
}

// One panel for TILE rows from number `row` on, as `compute` does it; R is 0, 1, … TILE − 1.
template <int BITS, int... R>
void compute_in_tiles(const std::uint8_t* w, const bf16* scales, const Rows& rows, int row, float* out,
                      std::integer_sequence<int, R...>) {
  floats sums[TILE] = {};
  const Rows::Codes* codes = rows.codes.get() + row;
  const Scale* x = rows.scales.get() + row;
  for (int g = 0; g < rows.groups; ++g, w += GROUP * LANES, scales += LANES * scales_of(BITS)) {
    zero_tile<0>(), load_tile<5>(codes, sizeof *codes), load_tile<7>(w, LANES * QUAD);
    add_int8_product<0, 5, 7>();
    ints products[TILE];
    store_tile<0>(products, sizeof *products);
    const floats scale = widen(scales);
    if constexpr (BITS == 4)
      ((sums[R] = add_product(sums[R], widen(scales + LANES), spread(x[R].total))), ...);
    ((sums[R] = add_product(sums[R], to_float(products[R]), scale * x[R].step)), ...);
    codes += rows.count, x += rows.count;
  }
  (write(out + R * LANES, sums[R]), ...);  // Copied whole, they would stay in memory all the time.
}
#endif

// A thread's products of some rows with one panel after the other, within the life of its `Tiles(TILE, STEPS)`.
class Products {
 public:
  explicit Products(int rows)
      : tiled_rows_(tiles_allowed() ? rows / TILE * TILE : 0), out_(std::size_t(rows) * LANES) {}

  // A panel's outputs [row][lane], with the bias (whose last panel is filled up, too).
  const float* multiply(const Weight& weight, int panel, const Rows& x) {
    if (weight.bits == 8) multiply<8>(weight, panel, x);
    else if (weight.bits == 6) multiply<6>(weight, panel, x);
    else multiply<4>(weight, panel, x);
    if (weight.bias)
      for (int row = 0; row < x.count; ++row)
        for (int lane = 0; lane < LANES; ++lane)
          out_[row * LANES + lane] += weight.bias[std::size_t(panel) * LANES + lane];
    return out_.data();
  }

 private:
  template <int BITS>
  void multiply(const Weight& weight, int panel, const Rows& x) {
    const std::size_t width = std::size_t(x.groups) * GROUP;
    const std::uint8_t* w = weight.codes + panel * width * LANES * BITS / 8;
    const bf16* scales = weight.scales + std::size_t(panel) * x.groups * LANES * scales_of(BITS);
    int row = 0;
#if HAS_TILES
    if (tiled_rows_) {
      opened_.resize(std::max(opened_.size(), width * LANES));
      open_panel<BITS>(w, x.groups, opened_.data());
      for (; row < tiled_rows_; row += TILE)
        compute_in_tiles<BITS>(opened_.data(), scales, x, row, &out_[row * LANES], Lanes());
    }
#endif
    row = some_rows<BITS, ROWS>(w, scales, x, row);
    row = some_rows<BITS, 4>(w, scales, x, row);
    row = some_rows<BITS, 2>(w, scales, x, row);
    some_rows<BITS, 1>(w, scales, x, row);
  }

  template <int BITS, int R>
  int some_rows(const std::uint8_t* w, const bf16* scales, const Rows& x, int row) {
    for (; row + R <= x.count; row += R) compute<BITS, R>(w, scales, x, row, &out_[row * LANES]);
    return row;
  }

  const int tiled_rows_;
  std::vector<float> out_;
  std::vector<std::uint8_t> opened_;
};

// Put a panel's outputs where they belong in rows of y.
void place(const Weight& weight, int panel, int rows, const float* out, float* y) {
  const int kept = std::min(LANES, weight.outputs - panel * LANES);
  y += std::size_t(panel) * LANES;
  for (int row = 0; row < rows; ++row, out += LANES, y += weight.outputs) {
    if (kept == LANES) std::memcpy(y, out, LANES * sizeof(float));  // A size that is known needs no call.
    else std::memcpy(y, out, kept * sizeof(float));
  }
}

}  // namespace
