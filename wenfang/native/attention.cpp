// Attention over packed rows, forward and backward, in bf16 with fp32 sums (AVX512-BF16, OpenMP).
//
// Position t of a row sees the positions start[t] … t, where start never falls along a row: its document so far, or the
// last positions of a sliding window. Blocks that nobody sees are never computed, so short documents cost little.
//
// Method: as FlashAttention (Dao et al. 2022), the backward pass recomputes the probabilities from the saved log-sum of
// each row; but a block's whole row of scores fits into the L2 cache, so no running rescale is needed.
//
// Every product goes through one kernel, C[m][n] += Σ_p A[m][p] · B[p][n], whose p counts *pairs* of bf16: the processor
// multiplies two neighbours at once. An operand is laid out for it either "paired" (rows 2p and 2p+1 woven together:
// the sum runs over rows) or "turned" (columns 2p and 2p+1 of each row become element p: the sum runs over columns).

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

using bf16 = std::uint16_t;
using pair = std::uint32_t;  // Two bf16, the one with the lower index in the lower half.

constexpr int LANES = 16;  // fp32 in a register.
constexpr int BLOCK = 32;  // Queries (forward) or keys (backward) handled together.
constexpr int ROWS = 4;    // Rows of C held in registers; with 4 registers across, 16 sums hide the latency.

int rounded(int n, int to) { return (n + to - 1) / to * to; }

// A tile of ROWS × (N · 16) of C. A's element (m, p) lies at a[m * a_row + p * a_pair].
template <int N>
void tile(const pair* a, int a_row, int a_pair, const pair* b, int b_row, float* c, int c_row, int pairs, bool add) {
  __m512 sum[ROWS][N];
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = add ? _mm512_loadu_ps(c + m * c_row + n * LANES) : _mm512_setzero_ps();
  for (int p = 0; p < pairs; ++p) {
    __m512bh right[N];
    for (int n = 0; n < N; ++n) right[n] = (__m512bh)_mm512_loadu_si512(b + p * b_row + n * LANES);
    for (int m = 0; m < ROWS; ++m) {
      const __m512bh left = (__m512bh)_mm512_set1_epi32(a[m * a_row + p * a_pair]);
      for (int n = 0; n < N; ++n) sum[m][n] = _mm512_dpbf16_ps(sum[m][n], left, right[n]);
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < N; ++n) _mm512_storeu_ps(c + m * c_row + n * LANES, sum[m][n]);
}

// C (rows × columns) = or += A · B. `rows` is a multiple of ROWS, `columns` of LANES.
void multiply(const pair* a, int a_row, int a_pair, const pair* b, int b_row, float* c, int c_row, int rows, int columns,
              int pairs, bool add) {
  for (int n = 0; n < columns; n += 4 * LANES) {
    const int registers = std::min(4, (columns - n) / LANES);
    auto run = registers == 4 ? tile<4> : registers == 3 ? tile<3> : registers == 2 ? tile<2> : tile<1>;
    for (int m = 0; m < rows; m += ROWS)
      run(a + m * a_row, a_row, a_pair, b + n, b_row, c + m * c_row + n, c_row, pairs, add);
  }
}

__m256i narrow(__m512 x) { return (__m256i)_mm512_cvtneps_pbh(x); }
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

// A head of a tensor: bf16 rows of `width` neighbouring numbers, `row` numbers apart.
struct Head {
  const bf16* data;
  std::int64_t row;
};

// out[p][t] = columns 2p, 2p+1 of row t; zero for the rows from `rows` to `padded`.
void turn(Head x, int rows, int padded, int width, pair* out) {
  for (int t = 0; t < padded; ++t)
    for (int p = 0; p < width / 2; ++p) {
      pair value = 0;
      if (t < rows) std::memcpy(&value, x.data + t * x.row + 2 * p, sizeof value);
      out[p * padded + t] = value;
    }
}

// out[p][d] = column d of rows 2p, 2p+1; zero for the rows from `rows` to `padded`.
void weave(Head x, int rows, int padded, int width, pair* out) {
  for (int p = 0; p < padded / 2; ++p)
    for (int d = 0; d < width; ++d) {
      const pair low = 2 * p < rows ? x.data[2 * p * x.row + d] : 0;
      const pair high = 2 * p + 1 < rows ? x.data[(2 * p + 1) * x.row + d] : 0;
      out[p * width + d] = low | high << 16;
    }
}

// Rows as the left operand: contiguous, with zero rows up to `padded`.
void gather(Head x, int rows, int padded, int width, bf16* out) {
  for (int t = 0; t < rows; ++t) std::memcpy(out + t * width, x.data + t * x.row, width * sizeof(bf16));
  std::memset(out + rows * width, 0, std::size_t(padded - rows) * width * sizeof(bf16));
}

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

Head head(const bf16* x, const Strides& s, int batch, int number) { return {at(x, s, batch, number), s.row}; }

// Scores of one query over the keys [from, to) become probabilities times their sum; returns the log-sum.
float soften(float* scores, int from, int to, int base, int padded, float scale, bf16* out, float* total) {
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
    _mm256_storeu_si256((__m256i*)(out + n), narrow(e));
  }
  *total = _mm512_reduce_add_ps(sum);
  return highest + std::log(*total);
}

// x · y over `width` bf16 numbers.
float dot(const bf16* x, const bf16* y, int width) {
  __m512 sum = _mm512_setzero_ps();
  for (int d = 0; d < width; d += LANES) sum = _mm512_fmadd_ps(widen(x + d), widen(y + d), sum);
  return _mm512_reduce_add_ps(sum);
}

// Rows of fp32 numbers, contiguous, as bf16.
void write(const float* x, int rows, int width, bf16* out, std::int64_t row) {
  for (int t = 0; t < rows; ++t)
    for (int d = 0; d < width; d += LANES)
      _mm256_storeu_si256((__m256i*)(out + t * row + d), narrow(_mm512_loadu_ps(x + t * width + d)));
}

}  // namespace

// out = softmax(scale · q kᵀ) v over what each position sees, and the log-sum of each row [batch][head][position].
extern "C" void attention_forward(const Shape* shape, const std::int32_t* starts, const bf16* q, const Strides* qs,
                                  const bf16* k, const Strides* ks, const bf16* v, const Strides* vs, bf16* out,
                                  const Strides* os, float* log_sums) {
  const int T = shape->length, K = shape->width, padded = rounded(T, BLOCK), group = shape->heads / shape->kv_heads;
#pragma omp parallel
  {
    auto keys = room<pair>(padded * K / 2), values = room<pair>(padded * K / 2);
    auto queries = room<bf16>(BLOCK * K), probabilities = room<bf16>(BLOCK * padded);
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
            gather({at(q, *qs, b, h) + first * qs->row, qs->row}, rows, BLOCK, K, queries.get());
            multiply((const pair*)queries.get(), K / 2, 1, keys.get() + base, padded, scores.get(), padded, BLOCK,
                     columns, K / 2, false);
            float totals[BLOCK] = {};
            for (int i = 0; i < rows; ++i) {
              const int t = first + i;
              log_sums[(std::int64_t(b) * shape->heads + h) * T + t] =
                  soften(scores.get() + i * padded, start[t], t + 1, base, columns, shape->scale,
                         probabilities.get() + i * padded, totals + i);
            }
            multiply((const pair*)probabilities.get(), padded / 2, 1, values.get() + base / 2 * K, K, context.get(), K,
                     BLOCK, K, columns / 2, false);
            for (int i = 0; i < rows; ++i) {
              const __m512 inverse = _mm512_set1_ps(1 / totals[i]);
              for (int d = 0; d < K; d += LANES)
                _mm256_storeu_si256((__m256i*)(at(out, *os, b, h) + (first + i) * os->row + d),
                                    narrow(_mm512_mul_ps(_mm512_loadu_ps(context.get() + i * K + d), inverse)));
            }
          }
      }
  }
}

// Gradients of q, k and v, given the gradient of `out`.
extern "C" void attention_backward(const Shape* shape, const std::int32_t* starts, const bf16* q, const Strides* qs,
                                   const bf16* k, const Strides* ks, const bf16* v, const Strides* vs, const bf16* out,
                                   const Strides* os, const float* log_sums, const bf16* grad, const Strides* gs,
                                   bf16* dq, const Strides* dqs, bf16* dk, const Strides* dks, bf16* dv,
                                   const Strides* dvs) {
  const int T = shape->length, K = shape->width, padded = rounded(T, BLOCK), group = shape->heads / shape->kv_heads;
  const std::size_t all = std::size_t(padded) * K;
#pragma omp parallel
  {
    auto keys = room<pair>(all / 2), queries = room<pair>(all / 2), queries_turned = room<pair>(all / 2);
    auto grads = room<pair>(all / 2), grads_turned = room<pair>(all / 2);
    auto key_rows = room<bf16>(BLOCK * K), value_rows = room<bf16>(BLOCK * K);
    auto scores = room<float>(BLOCK * padded), slopes = room<float>(BLOCK * padded);
    auto probabilities = room<bf16>(BLOCK * padded), steps = room<bf16>(BLOCK * padded);
    auto steps_woven = room<pair>(BLOCK / 2 * padded);
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
          const Head query = head(q, *qs, b, h), gradient = head(grad, *gs, b, h), context = head(out, *os, b, h);
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
            gather({at(k, *ks, b, g) + first * ks->row, ks->row}, rows, BLOCK, K, key_rows.get());
            gather({at(v, *vs, b, g) + first * vs->row, vs->row}, rows, BLOCK, K, value_rows.get());
            multiply((const pair*)key_rows.get(), K / 2, 1, queries_turned.get() + first, padded, scores.get(), padded,
                     BLOCK, columns, K / 2, false);
            multiply((const pair*)value_rows.get(), K / 2, 1, grads_turned.get() + first, padded, slopes.get(), padded,
                     BLOCK, columns, K / 2, false);
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
                const __m256i narrow_step = narrow(step);
                _mm256_storeu_si256((__m256i*)(probabilities.get() + at), narrow(p));
                _mm256_storeu_si256((__m256i*)(steps.get() + at), narrow_step);
                const __m512i wide = _mm512_cvtepu16_epi32(narrow_step);
                if (j % 2 == 0) {
                  woven = wide;
                } else {
                  woven = _mm512_or_si512(woven, _mm512_slli_epi32(wide, 16));
                  _mm512_storeu_si512(steps_woven.get() + j / 2 * padded + n, woven);
                }
              }
            }
            multiply((const pair*)probabilities.get(), padded / 2, 1, grads.get() + first / 2 * K, K,
                     value_sums.get() + first * K, K, BLOCK, K, columns / 2, true);
            multiply((const pair*)steps.get(), padded / 2, 1, queries.get() + first / 2 * K, K,
                     key_sums.get() + first * K, K, BLOCK, K, columns / 2, true);
            multiply(steps_woven.get(), 1, padded, keys.get() + first / 2 * K, K, query_sums.get() + first * K, K,
                     columns, K, BLOCK / 2, true);
          }
          write(query_sums.get(), T, K, at(dq, *dqs, b, h), dqs->row);
        }
        write(key_sums.get(), T, K, at(dk, *dks, b, g), dks->row);
        write(value_sums.get(), T, K, at(dv, *dvs, b, g), dvs->row);
      }
  }
}
