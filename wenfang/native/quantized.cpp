// y = x · Wᵀ with W in 8 or 4 bits and x in 15 (AVX512-VNNI, AVX2, NEON dot products, or plain C++; OpenMP).
//
// A weight is read once for up to ROWS rows of x and multiplied as an integer: x = scale · (128 · high + low), high and low
// of 8 bits each. Eight bits alone for x would double the speed of large batches and cost a language model a hundredfold
// of what eight bits for W cost it. Integer sums are exact, and floating-point ones go group by group in one order, so
// a row's result does not depend on which rows stand beside it.
//
// W lies in panels of LANES outputs: for each four neighbouring inputs, LANES × 4 bytes. Four-bit weights take two such
// steps in one: the earlier in the low halves of the bytes.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

constexpr int LANES = 16;  // Outputs in a panel.
constexpr int QUAD = 4;    // Inputs multiplied at once.
constexpr int GROUP = 32;  // Four-bit weights that share scale and minimum.
constexpr int STEPS = GROUP / QUAD;
constexpr int ROWS = 8;    // Rows of x that share a look at W; their sums fill half of the registers.

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

floats to_float(ints x) { return __builtin_convertvector(x, floats); }

floats widen(const bf16* x) { return (floats)(__builtin_convertvector(read<halves>(x), words) << 16); }

float wide(bf16 x) {
  const std::uint32_t bits = std::uint32_t(x) << 16;
  return read<float>(&bits);
}

halves narrow(floats x) {  // To the nearest, ties to even.
  const words bits = (words)x;
  return __builtin_convertvector((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, halves);
}

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

// Rows of x as integers; `width` is a multiple of GROUP, filled up with zeros.
struct Rows {
  int width, groups;
  std::unique_ptr<std::int8_t[]> high, low;
  std::unique_ptr<std::int32_t[]> sums;  // Of each group of a row: Σ (128 · high + low).
  std::unique_ptr<std::int32_t[]> high_sums, low_sums;  // Of a whole row.
  std::unique_ptr<float[]> scales;

  Rows(int count, int width)
      : width(width), groups(width / GROUP), high(new std::int8_t[std::size_t(count) * width]),
        low(new std::int8_t[std::size_t(count) * width]), sums(new std::int32_t[std::size_t(count) * groups]),
        high_sums(new std::int32_t[count]), low_sums(new std::int32_t[count]), scales(new float[count]) {}

  void quantise(int row, const bf16* x, int inputs) {
    std::uint32_t largest = 0;  // The bits of numbers without sign are in the order of the numbers.
    for (int k = 0; k < inputs; ++k) largest = std::max<std::uint32_t>(largest, x[k] & 0x7FFF);
    const float most = wide(std::uint16_t(largest));
    constexpr float LARGEST = 127 * 128;
    const float inverse = most > 0 ? LARGEST / most : 0;
    scales[row] = most / LARGEST;
    std::int8_t *h = high.get() + std::size_t(row) * width, *l = low.get() + std::size_t(row) * width;
    std::memset(h + inputs, 0, width - inputs);
    std::memset(l + inputs, 0, width - inputs);
    for (int k = 0; k < inputs; ++k) {
      const float scaled = wide(x[k]) * inverse;
      const int whole = int(scaled + (scaled < 0 ? -0.5f : 0.5f)), top = (whole + 64) >> 7;
      h[k] = std::int8_t(top);
      l[k] = std::int8_t(whole - top * 128);
    }
    int all_high = 0, all_low = 0;
    for (int g = 0; g < groups; ++g) {
      int sum_high = 0, sum_low = 0;
      for (int k = g * GROUP; k < (g + 1) * GROUP; ++k) sum_high += h[k], sum_low += l[k];
      sums[std::size_t(row) * groups + g] = 128 * sum_high + sum_low;
      all_high += sum_high;
      all_low += sum_low;
    }
    high_sums[row] = all_high;
    low_sums[row] = all_low;
  }
};

// One panel for R rows, eight bits: a scale per output.
template <int R>
void panel8(const std::uint8_t* w, const float* scales, const Rows& x, int row, floats* out) {
  const std::int8_t *high = x.high.get() + std::size_t(row) * x.width, *low = x.low.get() + std::size_t(row) * x.width;
  ints highs[R][2] = {}, lows[R][2] = {};  // Two each: a lone row would else wait for every sum.
  for (int k = 0; k < x.width; k += 2 * QUAD)
    for (int i = 0; i < 2; ++i) {
      const bytes weights = open(read<bytes>(w + std::size_t(k + i * QUAD) * LANES));
      for (int r = 0; r < R; ++r) {
        const std::size_t at = std::size_t(r) * x.width + k + i * QUAD;
        const int turn = R > 2 ? 0 : i;
        highs[r][turn] = dot(highs[r][turn], weights, read<std::int32_t>(high + at));
        lows[r][turn] = dot(lows[r][turn], weights, read<std::int32_t>(low + at));
      }
    }
  for (int r = 0; r < R; ++r) {
    const ints top = highs[r][0] + highs[r][1] - ZERO * x.high_sums[row + r];
    const ints rest = lows[r][0] + lows[r][1] - ZERO * x.low_sums[row + r];
    out[r] = (to_float(top) * 128.0f + to_float(rest)) * (read<floats>(scales) * x.scales[row + r]);
  }
}

// One panel for R rows, four bits: scale and minimum per group and output, in bf16.
template <int R>
void panel4(const std::uint8_t* w, const bf16* scales, const Rows& x, int row, floats* out) {
  const std::int8_t *high = x.high.get() + std::size_t(row) * x.width, *low = x.low.get() + std::size_t(row) * x.width;
  floats sums[R] = {};
  for (int g = 0; g < x.groups; ++g) {
    ints highs[R] = {}, lows[R] = {};
    for (int s = 0; s < STEPS; s += 2, w += LANES * QUAD) {
      const bytes both = read<bytes>(w);
      const bytes first = both & 15, second = (bytes)((words)both >> 4) & 15;
      for (int r = 0; r < R; ++r) {
        const std::size_t at = std::size_t(r) * x.width + g * GROUP + s * QUAD;
        highs[r] = dot(highs[r], first, read<std::int32_t>(high + at));
        lows[r] = dot(lows[r], first, read<std::int32_t>(low + at));
        highs[r] = dot(highs[r], second, read<std::int32_t>(high + at + QUAD));
        lows[r] = dot(lows[r], second, read<std::int32_t>(low + at + QUAD));
      }
    }
    const floats scale = widen(scales), least = widen(scales + LANES);
    scales += 2 * LANES;
    for (int r = 0; r < R; ++r) {
      sums[r] += to_float(highs[r] * 128 + lows[r]) * scale;  // Below 2²³: exact.
      sums[r] += least * float(x.sums[std::size_t(row + r) * x.groups + g]);
    }
  }
  for (int r = 0; r < R; ++r) out[r] = sums[r] * x.scales[row + r];
}

template <int R>
using Count = std::integral_constant<int, R>;

}  // namespace

// y[row][output] for `rows` rows of `inputs` numbers, in bf16; weights of `bits` bits in panels of LANES outputs, each with
// the inputs filled up to a multiple of GROUP.
extern "C" void quantized_linear(std::int32_t bits, const std::uint8_t* weights, const void* scales, const bf16* x, bf16* y,
                                 std::int32_t rows, std::int32_t inputs, std::int32_t outputs, std::int32_t threads) {
  const int width = (inputs + GROUP - 1) / GROUP * GROUP, panels = (outputs + LANES - 1) / LANES;
  const std::size_t panel_bytes = std::size_t(width) * LANES * bits / 8, panel_scales = width / GROUP * 2 * LANES;
  Rows quantised(rows, width);
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
#pragma omp for schedule(static)
    for (int row = 0; row < rows; ++row) quantised.quantise(row, x + std::size_t(row) * inputs, inputs);
    const std::unique_ptr<floats[]> out(new floats[rows]);
    const int share = std::max(1, panels / (8 * threads));  // Whoever is held up takes fewer.
#pragma omp for schedule(dynamic, share)
    for (int p = 0; p < panels; ++p) {
      const std::uint8_t* w = weights + p * panel_bytes;
      const float* scales8 = (const float*)scales + std::size_t(p) * LANES;
      const bf16* scales4 = (const bf16*)scales + p * panel_scales;
      const auto run = [&](auto count, int row) {
        constexpr int R = decltype(count)::value;
        for (; row + R <= rows; row += R)
          bits == 8 ? panel8<R>(w, scales8, quantised, row, &out[row]) : panel4<R>(w, scales4, quantised, row, &out[row]);
        return row;
      };
      run(Count<1>(), run(Count<2>(), run(Count<4>(), run(Count<ROWS>(), 0))));
      const std::size_t kept = std::min(LANES, outputs - p * LANES) * sizeof(bf16);
      for (int row = 0; row < rows; ++row) {
        const halves numbers = narrow(out[row]);
        std::memcpy(y + std::size_t(row) * outputs + std::size_t(p) * LANES, &numbers, kept);
      }
    }
  }
}
