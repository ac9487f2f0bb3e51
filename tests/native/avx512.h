// The instructions of AVX512 that our kernels name, as loops: so the code for sixteen lanes runs on any processor.
// Compile with `-include` of this file; the compiler cuts the vectors to what there is.

#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstring>

#define __AVX512VNNI__ 1
#define __AVX512BF16__ 1

namespace stand_in {

using floats = float __attribute__((vector_size(64)));
using ints = int __attribute__((vector_size(64)));
using halves = unsigned short __attribute__((vector_size(32)));

inline floats fused(floats a, floats b, floats c) {
  floats sum;
  for (int i = 0; i < 16; ++i) sum[i] = std::fma(a[i], b[i], c[i]);
  return sum;
}

inline ints everywhere(int x) { return ints{} + x; }

// sum + Σ u · s over four bytes, u without sign and s with one.
inline ints dot(ints sum, ints u, ints s) {
  for (int i = 0; i < 16; ++i)
    for (int shift = 0; shift < 32; shift += 8) sum[i] += (u[i] >> shift & 255) * (signed char)(s[i] >> shift);
  return sum;
}

inline float widened(unsigned x) {
  float number;
  std::memcpy(&number, &x, sizeof number);
  return number;
}

inline floats dot_halves(floats sum, ints a, ints b) {
  for (int i = 0; i < 16; ++i) {
    sum[i] += widened(unsigned(a[i]) << 16) * widened(unsigned(b[i]) << 16);
    sum[i] += widened(a[i] & 0xFFFF0000) * widened(b[i] & 0xFFFF0000);
  }
  return sum;
}

inline halves narrowed(floats x) {  // To the nearest, ties to even.
  halves numbers;
  for (int i = 0; i < 16; ++i) {
    unsigned bits;
    const float number = x[i];
    std::memcpy(&bits, &number, sizeof bits);
    numbers[i] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  }
  return numbers;
}

}  // namespace stand_in

#define __m512 stand_in::floats
#define __m512i stand_in::ints
#define __m512bh stand_in::ints
#define _mm512_fmadd_ps stand_in::fused
#define _mm512_set1_epi32 stand_in::everywhere
#define _mm512_dpbusd_epi32 stand_in::dot
#define _mm512_dpbf16_ps stand_in::dot_halves
#define _mm512_cvtneps_pbh stand_in::narrowed
#define asm(...)  // Registers so wide there are none.
