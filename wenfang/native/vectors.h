// Vectors as wide as the processor's registers, and what the kernels compute with them.

#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512VNNI__)
constexpr int WIDTH = 16;  // 32-bit numbers in a register of the processor.
#elif defined(__AVX2__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif

using ints = std::int32_t __attribute__((vector_size(WIDTH * 4)));
using floats = float __attribute__((vector_size(WIDTH * 4)));
using words = std::uint32_t __attribute__((vector_size(WIDTH * 4)));
using halves = std::uint16_t __attribute__((vector_size(WIDTH * 2)));
using bf16 = std::uint16_t;

using Lanes = std::make_integer_sequence<int, WIDTH>;

template <int... I>
constexpr ints counting(std::integer_sequence<int, I...>) {
  return ints{I...};
}
constexpr ints COUNTING = counting(Lanes());  // 0, 1, 2, …

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

// x, in a register and computed here: GCC would load it again for each use, or put off sums until it has no registers.
template <class V>
V hold(V x) {
#if defined(__AVX512VNNI__)
  asm("" : "+v"(x));
#elif defined(__AVX2__)
  asm("" : "+x"(x));
#endif
  return x;
}

// x in every lane (a sum with zero would be computed).
inline floats spread(float x) { return x - floats{}; }

inline floats to_float(ints x) { return __builtin_convertvector(x, floats); }

// sum + a · b, rounded once where the processor can.
inline floats add_product(floats sum, floats a, floats b) {
#if defined(__AVX512VNNI__)
  return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
#elif defined(__AVX2__) && defined(__FMA__)
  return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
#elif defined(__ARM_FEATURE_DOTPROD)
  return (floats)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
#else
  return sum + a * b;
#endif
}

inline floats widen(const bf16* x) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)  // GCC converts half a register at a time.
  return (floats)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)x)), 16);
#else
  return (floats)(__builtin_convertvector(read<halves>(x), words) << 16);
#endif
}
inline floats widen(const float* x) { return read<floats>(x); }
inline float widen(float x) { return x; }
inline float widen(bf16 x) {
  const std::uint32_t bits = std::uint32_t(x) << 16;
  return read<float>(&bits);
}

// To the nearest bf16, ties to even.
inline halves narrow(floats x) {
#if defined(__AVX512BF16__)
  return (halves)_mm512_cvtneps_pbh((__m512)x);
#else
  const words bits = (words)x;
  return __builtin_convertvector((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, halves);
#endif
}

inline void store(float* out, floats x) { write(out, x); }
inline void store(bf16* out, floats x) { write(out, narrow(x)); }

// All bits of the lanes base + i with low ≤ base + i < high.
inline ints between(int base, int low, int high) {
  const ints at = base + COUNTING;
  return (at >= low) & (at < high);
}

inline floats masked(ints kept, floats x) { return (floats)(kept & (ints)x); }

// All lanes in one, halves by halves.
template <int HALF = WIDTH / 2, class F>
float reduce(floats x, F join) {
  x = join(x, __builtin_shuffle(x, COUNTING ^ HALF));
  if constexpr (HALF > 1) return reduce<HALF / 2>(x, join);
  return x[0];
}

inline float total(floats x) {
  return reduce(x, [](floats a, floats b) { return a + b; });
}

// Rows and columns of WIDTH × WIDTH numbers change places, in squares of B × B and then of twice that.
template <int B = 1>
void transpose(words* v) {
  const ints second = (COUNTING & B) != 0, swapped = COUNTING ^ B;
  for (int i = 0; i < WIDTH; ++i) {
    if (i & B) continue;
    const words a = v[i], b = v[i + B];
    v[i] = second ? __builtin_shuffle(b, swapped) : a;
    v[i + B] = second ? b : __builtin_shuffle(a, swapped);
  }
  if constexpr (2 * B < WIDTH) transpose<2 * B>(v);
}

// eˣ to a few units in the last place; 0 below the normal numbers, e⁸⁸ beyond that (Cody & Waite's reduction, and the
// polynomial of Cephes' expf).
inline floats exponential(floats x) {
  const ints normal = x > -87.0f;
  const floats most = floats{} + 88.0f, magic = floats{} + 12582912.0f;
  x = x < most ? x : most;
  const floats shifted = add_product(magic, x, floats{} + 1.44269504f), n = shifted - magic;  // A whole number.
  const floats r = add_product(add_product(x, n, floats{} - 0.693359375f), n, floats{} + 2.12194440e-4f);
  floats p = floats{} + 1.9875691e-4f;
  for (float c : {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 1.6666665e-1f, 0.5f, 1.0f, 1.0f})
    p = add_product(floats{} + c, p, r);
  return (floats)(normal & ((ints)p + ((ints)shifted << 23)));  // n is in the last bits of `shifted`; 2ⁿ · p.
}

}  // namespace
