// Attention over packed rows, forward and backward, in bf16 or fp32 with fp32 sums (AVX512-BF16, OpenMP).
//
// Position t of a row sees the positions start[t] … t, where start never falls along a row: its document so far, or the
// last positions of a sliding window. Blocks that nobody sees are never computed, so short documents cost little.
//
// Method: as FlashAttention (Dao et al. 2022), the backward pass recomputes the probabilities from the saved log-sum of
// each row; but a block's whole row of scores fits into the L2 cache, so no running rescale is needed.
//
// Every product goes through one kernel, C[m][n] += Σ_p A[m][p] · B[p][n], whose p counts *units*: pairs of bf16, of which
// the processor multiplies two neighbours at once, or single fp32 numbers. An operand is laid out for it either "woven"
// (rows 2p and 2p+1 together: the sum runs over rows) or "turned" (columns 2p and 2p+1 of each row become element p: the
// sum runs over columns).

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

namespace {

using bf16 = std::uint16_t;
using pair = std::uint32_t;  // Two bf16, the one with the lower index in the lower half.

constexpr int LANES = 16;  // fp32 in a register.
constexpr int BLOCK = 32;  // Queries (forward) or keys (backward) handled together.
constexpr int ROWS = 4;    // Rows of C held in registers; with 4 registers across, 16 sums hide the latency.

int rounded(int n, int to) { return (n + to - 1) / to * to; }

template <class T>
using Unit = std::conditional_t<std::is_same_v<T, bf16>, pair, float>;
template <class T>
constexpr int IN_UNIT = sizeof(Unit<T>) / sizeof(T);

__m512bh load(const pair* x) { return (__m512bh)_mm512_loadu_si512(x); }
__m512 load(const float* x) { return _mm512_loadu_ps(x); }
__m512bh spread(pair x) { return (__m512bh)_mm512_set1_epi32(x); }
__m512 spread(float x) { return _mm512_set1_ps(x); }
__m512 add_product(__m512 sum, __m512bh left, __m512bh right) { return _mm512_dpbf16_ps(sum, left, right); }
__m512 add_product(__m512 sum, __m512 left, __m512 right) { return _mm512_fmadd_ps(left, right, sum); }

// A tile of ROWS × (N · 16) of C. A's element (m, p) lies at a[m * a_row + p * a_unit].
template <int N, class U>
void tile(const U* a, int a_row, int a_unit, const U* b, int b_row, float* c, int c_row, int units, bool add) {
  __m512 sum[ROWS][N];
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = add ? _mm512_loadu_ps(c + m * c_row + n * LANES) : _mm512_setzero_ps();
  for (int p = 0; p < units; ++p) {
    decltype(load(b)) right[N];
    for (int n = 0; n < N; ++n) right[n] = load(b + p * b_row + n * LANES);
    for (int m = 0; m < ROWS; ++m) {
      const auto left = spread(a[m * a_row + p * a_unit]);
      for (int n = 0; n < N; ++n) sum[m][n] = add_product(sum[m][n], left, right[n]);
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < N; ++n) _mm512_storeu_ps(c + m * c_row + n * LANES, sum[m][n]);
}

// C (rows × columns) = or += A · B. `rows` is a multiple of ROWS, `columns` of LANES.
template <class U>
void multiply(const U* a, int a_row, int a_unit, const U* b, int b_row, float* c, int c_row, int rows, int columns,
              int units, bool add) {
  for (int n = 0; n < columns; n += 4 * LANES) {
    const int registers = std::min(4, (columns - n) / LANES);
    auto run = registers == 4 ? tile<4, U> : registers == 3 ? tile<3, U> : registers == 2 ? tile<2, U> : tile<1, U>;
    for (int m = 0; m < rows; m += ROWS)
      run(a + m * a_row, a_row, a_unit, b + n, b_row, c + m * c_row + n, c_row, units, add);
  }
}

__m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
void store(bf16* out, __m512 x) { _mm256_storeu_si256((__m256i*)out, narrow(x)); }
void store(float* out, __m512 x) { _mm512_storeu_ps(out, x); }
__m512 widen(const float* x) { return _mm512_loadu_ps(x); }
__m512 widen(const bf16* x) {
  return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)x)), 16);
}

// e^x by 2^n · e^r with |r| ≤ ln 2 / 2; Taylor's sixth term is below fp32's last bit of interest (2e-7 relative).
__m512 exponential(__m512 x) {
  x = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);  // ln 2 in two parts, the first one exact.
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 sum = _mm512_set1_ps(1.0f / 720);
  for (const float term : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
  return _mm512_scalef_ps(sum, n);
}

// A head of a tensor: rows of `width` neighbouring numbers, `row` numbers apart.
template <class T>
struct Head {
  const T* data;
  std::int64_t row;
};

// out[p][t] = unit p of row t; zero for the rows from `rows` to `padded`.
template <class T>
void turn(Head<T> x, int rows, int padded, int width, Unit<T>* out) {
  for (int t = 0; t < padded; ++t)
    for (int p = 0; p < width / IN_UNIT<T>; ++p) {
      Unit<T> value = 0;
      if (t < rows) std::memcpy(&value, x.data + t * x.row + IN_UNIT<T> * p, sizeof value);
      out[p * padded + t] = value;
    }
}

// out[p][d] = column d of rows 2p, 2p+1 (fp32: of row p); zero for the rows from `rows` to `padded`.
void weave(Head<bf16> x, int rows, int padded, int width, pair* out) {
  for (int p = 0; p < padded / 2; ++p)
    for (int d = 0; d < width; ++d) {
      const pair low = 2 * p < rows ? x.data[2 * p * x.row + d] : 0;
      const pair high = 2 * p + 1 < rows ? x.data[(2 * p + 1) * x.row + d] : 0;
      out[p * width + d] = low | high << 16;
    }
}

// Rows as the left operand: contiguous, with zero rows up to `padded`.
template <class T>
void gather(Head<T> x, int rows, int padded, int width, T* out) {
  for (int t = 0; t < rows; ++t) std::memcpy(out + t * width, x.data + t * x.row, width * sizeof(T));
  std::memset(out + rows * width, 0, std::size_t(padded - rows) * width * sizeof(T));
}

void weave(Head<float> x, int rows, int padded, int width, float* out) { gather(x, rows, padded, width, out); }

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Uninitialised memory for n numbers, on a cache line's border.
template <class T>
std::unique_ptr<T[], Free> room(std::size_t n) {
  return std::unique_ptr<T[], Free>((T*)std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64));
}

// Bits 0 … 15: the lanes base + i with low ≤ base + i < high.
__mmask16 between(int base, int low, int high) {
  const int from = std::clamp(low - base, 0, LANES), to = std::clamp(high - base, 0, LANES);
  return from < to ? __mmask16((0xFFFFu >> (LANES - (to - from))) << from) : __mmask16(0);
}

}  // namespace

// What all heads share. Tensors are indexed [batch][head][position][width] by strides in numbers; widths are contiguous.
struct Shape {
  std::int32_t batch, length, heads, kv_heads, width;
  float scale;  // Of the scores.
};

struct Strides {
  std::int64_t batch, head, row;
};

namespace {

template <class T>
T* at(T* x, const Strides& s, int batch, int head) {
  return x + batch * s.batch + head * s.head;
}

template <class T>
Head<T> head(const T* x, const Strides& s, int batch, int number) {
  return {at(x, s, batch, number), s.row};
}

// Scores of one query over the keys [from, to) become probabilities times their sum; returns the log-sum.
template <class T>
float soften(float* scores, int from, int to, int base, int padded, float scale, T* out, float* total) {
  __m512 most = _mm512_set1_ps(-INFINITY), sum = _mm512_setzero_ps();
  for (int n = 0; n < padded; n += LANES) {
    const __mmask16 seen = between(base + n, from, to);
    const __m512 s = _mm512_mul_ps(_mm512_loadu_ps(scores + n), _mm512_set1_ps(scale));
    most = _mm512_mask_max_ps(most, seen, most, s);
    _mm512_storeu_ps(scores + n, s);
  }
  const float highest = _mm512_reduce_max_ps(most);
  for (int n = 0; n < padded; n += LANES) {
    const __mmask16 seen = between(base + n, from, to);
    const __m512 e = _mm512_maskz_mov_ps(
        seen, exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + n), _mm512_set1_ps(highest))));
    sum = _mm512_add_ps(sum, e);
    store(out + n, e);
  }
  *total = _mm512_reduce_add_ps(sum);
  return highest + std::log(*total);
}

// x · y over `width` numbers.
template <class T>
float dot(const T* x, const T* y, int width) {
  __m512 sum = _mm512_setzero_ps();
  for (int d = 0; d < width; d += LANES) sum = _mm512_fmadd_ps(widen(x + d), widen(y + d), sum);
  return _mm512_reduce_add_ps(sum);
}

// Rows of fp32 numbers, contiguous, as numbers of another tensor.
template <class T>
void write(const float* x, int rows, int width, T* out, std::int64_t row) {
  for (int t = 0; t < rows; ++t)
    for (int d = 0; d < width; d += LANES) store(out + t * row + d, _mm512_loadu_ps(x + t * width + d));
}

// out = softmax(scale · q kᵀ) v over what each position sees, and the log-sum of each row [batch][head][position].
template <class N>
void forward(const Shape* shape, const std::int32_t* starts, const N* q, const Strides* qs, const N* k,
             const Strides* ks, const N* v, const Strides* vs, N* out, const Strides* os, float* log_sums) {
  constexpr int IN = IN_UNIT<N>;
  using U = Unit<N>;
  const int T = shape->length, K = shape->width, padded = rounded(T, BLOCK), group = shape->heads / shape->kv_heads;
#pragma omp parallel
  {
    auto keys = room<U>(padded * K / IN), values = room<U>(padded * K / IN);
    auto queries = room<N>(BLOCK * K), probabilities = room<N>(BLOCK * padded);
    auto scores = room<float>(BLOCK * padded), context = room<float>(BLOCK * K);
#pragma omp for collapse(2) schedule(dynamic)
    for (int b = 0; b < shape->batch; ++b)
      for (int g = 0; g < shape->kv_heads; ++g) {
        turn(head(k, *ks, b, g), T, padded, K, keys.get());
        weave(head(v, *vs, b, g), T, padded, K, values.get());
        const std::int32_t* start = starts + std::int64_t(b) * T;
        for (int h = g * group; h < (g + 1) * group; ++h)
          for (int first = 0; first < T; first += BLOCK) {
            const int rows = std::min(BLOCK, T - first);
            const int base = start[first] / LANES * LANES, columns = rounded(first + rows - base, LANES);
            gather(Head<N>{at(q, *qs, b, h) + first * qs->row, qs->row}, rows, BLOCK, K, queries.get());
            multiply<U>((const U*)queries.get(), K / IN, 1, keys.get() + base, padded, scores.get(), padded, BLOCK,
                        columns, K / IN, false);
            float totals[BLOCK] = {};
            for (int i = 0; i < rows; ++i) {
              const int t = first + i;
              log_sums[(std::int64_t(b) * shape->heads + h) * T + t] =
                  soften(scores.get() + i * padded, start[t], t + 1, base, columns, shape->scale,
                         probabilities.get() + i * padded, totals + i);
            }
            multiply<U>((const U*)probabilities.get(), padded / IN, 1, values.get() + base / IN * K, K, context.get(),
                        K, BLOCK, K, columns / IN, false);
            for (int i = 0; i < rows; ++i) {
              const __m512 inverse = _mm512_set1_ps(1 / totals[i]);
              for (int d = 0; d < K; d += LANES)
                store(at(out, *os, b, h) + (first + i) * os->row + d,
                      _mm512_mul_ps(_mm512_loadu_ps(context.get() + i * K + d), inverse));
            }
          }
      }
  }
}

// Gradients of q, k and v, given the gradient of `out`.
template <class N>
void backward(const Shape* shape, const std::int32_t* starts, const N* q, const Strides* qs, const N* k,
              const Strides* ks, const N* v, const Strides* vs, const N* out, const Strides* os, const float* log_sums,
              const N* grad, const Strides* gs, N* dq, const Strides* dqs, N* dk, const Strides* dks, N* dv,
              const Strides* dvs) {
  constexpr int IN = IN_UNIT<N>;
  using U = Unit<N>;
  const int T = shape->length, K = shape->width, padded = rounded(T, BLOCK), group = shape->heads / shape->kv_heads;
  const std::size_t all = std::size_t(padded) * K;
#pragma omp parallel
  {
    auto keys = room<U>(all / IN), queries = room<U>(all / IN), queries_turned = room<U>(all / IN);
    auto grads = room<U>(all / IN), grads_turned = room<U>(all / IN);
    auto key_rows = room<N>(BLOCK * K), value_rows = room<N>(BLOCK * K);
    auto scores = room<float>(BLOCK * padded), slopes = room<float>(BLOCK * padded);
    auto probabilities = room<N>(BLOCK * padded), steps = room<N>(BLOCK * padded);
    auto steps_woven = room<U>(IN == 1 ? 0 : BLOCK / IN * padded);
    auto query_sums = room<float>(all), key_sums = room<float>(all), value_sums = room<float>(all);
    auto deltas = room<float>(padded);
#pragma omp for collapse(2) schedule(dynamic)
    for (int b = 0; b < shape->batch; ++b)
      for (int g = 0; g < shape->kv_heads; ++g) {
        const std::int32_t* start = starts + std::int64_t(b) * T;
        weave(head(k, *ks, b, g), T, padded, K, keys.get());
        std::fill_n(key_sums.get(), all, 0.0f);
        std::fill_n(value_sums.get(), all, 0.0f);
        for (int h = g * group; h < (g + 1) * group; ++h) {
          const Head<N> query = head(q, *qs, b, h), gradient = head(grad, *gs, b, h), context = head(out, *os, b, h);
          const float* log_sum = log_sums + (std::int64_t(b) * shape->heads + h) * T;
          turn(query, T, padded, K, queries_turned.get());
          weave(query, T, padded, K, queries.get());
          turn(gradient, T, padded, K, grads_turned.get());
          weave(gradient, T, padded, K, grads.get());
          for (int t = 0; t < T; ++t) deltas[t] = dot(gradient.data + t * gradient.row, context.data + t * context.row, K);
          std::fill_n(query_sums.get(), all, 0.0f);
          for (int first = 0, end = 0; first < T; first += BLOCK) {
            const int rows = std::min(BLOCK, T - first);
            for (end = std::max(end, first + rows); end < T && start[end] < first + rows;) ++end;
            const int columns = rounded(end - first, LANES);
            gather(Head<N>{at(k, *ks, b, g) + first * ks->row, ks->row}, rows, BLOCK, K, key_rows.get());
            gather(Head<N>{at(v, *vs, b, g) + first * vs->row, vs->row}, rows, BLOCK, K, value_rows.get());
            multiply<U>((const U*)key_rows.get(), K / IN, 1, queries_turned.get() + first, padded, scores.get(),
                        padded, BLOCK, columns, K / IN, false);
            multiply<U>((const U*)value_rows.get(), K / IN, 1, grads_turned.get() + first, padded, slopes.get(),
                        padded, BLOCK, columns, K / IN, false);
            for (int n = 0; n < columns; n += LANES) {
              const int t = first + n;
              const __mmask16 real = between(t, 0, T);
              const __m512i begin = _mm512_maskz_loadu_epi32(real, start + t);
              const __m512i now = _mm512_add_epi32(
                  _mm512_set1_epi32(t), _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
              const __m512 log_sum_t = _mm512_maskz_loadu_ps(real, log_sum + t);
              const __m512 delta_t = _mm512_maskz_loadu_ps(real, deltas.get() + t);
              __m512i woven = _mm512_setzero_si512();
              for (int j = 0; j < BLOCK; ++j) {
                const __m512i key = _mm512_set1_epi32(first + j);
                const __mmask16 seen =
                    real & _mm512_cmple_epi32_mask(begin, key) & _mm512_cmple_epi32_mask(key, now);
                const int at = j * padded + n;
                const __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores.get() + at), _mm512_set1_ps(shape->scale));
                const __m512 p = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(score, log_sum_t)));
                const __m512 slope = _mm512_sub_ps(_mm512_loadu_ps(slopes.get() + at), delta_t);
                const __m512 step = _mm512_mul_ps(_mm512_mul_ps(p, slope), _mm512_set1_ps(shape->scale));
                store(probabilities.get() + at, p);
                store(steps.get() + at, step);
                if constexpr (IN == 1) continue;  // The steps are their own left operand.
                if (j % 2 == 0) {
                  woven = _mm512_cvtepu16_epi32(narrow(step));
                } else {
                  woven = _mm512_or_si512(woven, _mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow(step)), 16));
                  _mm512_storeu_si512(steps_woven.get() + j / 2 * padded + n, woven);
                }
              }
            }
            multiply<U>((const U*)probabilities.get(), padded / IN, 1, grads.get() + first / IN * K, K,
                        value_sums.get() + first * K, K, BLOCK, K, columns / IN, true);
            multiply<U>((const U*)steps.get(), padded / IN, 1, queries.get() + first / IN * K, K,
                        key_sums.get() + first * K, K, BLOCK, K, columns / IN, true);
            multiply<U>(IN == 1 ? (const U*)steps.get() : steps_woven.get(), 1, padded, keys.get() + first / IN * K, K,
                        query_sums.get() + first * K, K, columns, K, BLOCK / IN, true);
          }
          write(query_sums.get(), T, K, at(dq, *dqs, b, h), dqs->row);
        }
        write(key_sums.get(), T, K, at(dk, *dks, b, g), dks->row);
        write(value_sums.get(), T, K, at(dv, *dvs, b, g), dvs->row);
      }
  }
}

}  // namespace

#define EXPORT(NAME, N)                                                                                               \
  extern "C" void attention_forward_##NAME(const Shape* shape, const std::int32_t* starts, const N* q,                \
                                           const Strides* qs, const N* k, const Strides* ks, const N* v,              \
                                           const Strides* vs, N* out, const Strides* os, float* log_sums) {           \
    forward(shape, starts, q, qs, k, ks, v, vs, out, os, log_sums);                                                   \
  }                                                                                                                   \
  extern "C" void attention_backward_##NAME(                                                                          \
      const Shape* shape, const std::int32_t* starts, const N* q, const Strides* qs, const N* k, const Strides* ks,   \
      const N* v, const Strides* vs, const N* out, const Strides* os, const float* log_sums, const N* grad,           \
      const Strides* gs, N* dq, const Strides* dqs, N* dk, const Strides* dks, N* dv, const Strides* dvs) {           \
    backward(shape, starts, q, qs, k, ks, v, vs, out, os, log_sums, grad, gs, dq, dqs, dk, dks, dv, dvs);             \
  }
EXPORT(bf16, bf16)
EXPORT(fp32, float)
