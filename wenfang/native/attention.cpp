// Attention over packed rows, forward and backward, in fp32 or (with AVX512-BF16) bf16, with fp32 sums; OpenMP.
//
// Position t of a row sees the positions start[t] … t, where start never falls along a row: its document so far, or the
// last positions of a sliding window. Blocks that nobody sees are never computed, so short documents cost little.
//
// Method: as FlashAttention (Dao et al. 2022), the backward pass recomputes the probabilities from the saved log-sum of
// each row; but a block's whole row of scores fits into the L2 cache, so no running rescale is needed.
//
// Every product goes through one function, in registers or tiles: C[m][n] += Σ_p A[m][p] · B[p][n], whose p counts
// *units*: pairs of bf16, of which the processor multiplies two neighbours at once, or single fp32 numbers. An operand is
// laid out for it either "woven" (rows 2p and 2p+1 together: the sum runs over rows) or "turned" (columns 2p and 2p+1 of
// each row become element p: the sum runs over columns).

#include "tiles.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <type_traits>

namespace {

using pair = std::uint32_t;  // Two bf16, the one with the lower index in the lower half.

// Queries (forward) or keys (backward) handled together: as few as the product goes with, as all of them are multiplied
// with whatever one of them sees.
constexpr int BLOCK = HAS_TILES ? 2 * TILE : 16;
constexpr int ROWS = 4;  // Rows of C held in registers, by ACROSS registers: as many sums as hide the latency.
constexpr int ACROSS = WIDTH == 8 ? 3 : 4;  // AVX2 has half as many registers as the others.
constexpr int LINE_BYTES = 64;              // Of the caches.
constexpr int AHEAD = 16;                   // Rows between the one that is asked for and the one that is read.

// Numbers from one row of up to n to the next: rows a power of two apart would share few lines of the cache.
int spaced(int n) { return n + 16; }

constexpr int rounded(int n, int to) { return (n + to - 1) / to * to; }

template <class T>
using Unit = std::conditional_t<std::is_same_v<T, bf16>, pair, T>;
template <class T>
constexpr int IN_UNIT = sizeof(Unit<T>) / sizeof(T);
template <class T>
constexpr int COLUMNS = HAS_TILES ? TILE * IN_UNIT<T> : WIDTH;  // Positions that are looked at together: whole tiles.

floats load(const float* x) { return read<floats>(x); }
#if defined(__AVX512BF16__)
words load(const pair* x) { return read<words>(x); }
words spread(pair x) { return words{} + x; }
floats add_product(floats sum, words left, words right) {
  return (floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}
#endif

// `store` past the caches where the processor can; `settle` makes it visible to others.
#if defined(__AVX512BF16__) && defined(__AVX__)
void pass(bf16* out, floats x) { _mm256_stream_si256((__m256i*)out, (__m256i)narrow(x)); }
void settle() { _mm_sfence(); }
#else
void pass(bf16* out, floats x) { store(out, x); }
void settle() {}
#endif
void pass(float* out, floats x) { store(out, x); }

// ROWS × (N · WIDTH) of C.
template <int N, class U>
void in_registers(const U* a, int a_row, const U* b, int b_row, float* c, int c_row, int units, bool add) {
  floats sum[ROWS][N];
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < N; ++n) sum[m][n] = add ? load(c + m * c_row + n * WIDTH) : floats{};
  for (int p = 0; p < units; ++p) {
    decltype(load(b)) right[N];
    for (int n = 0; n < N; ++n) right[n] = hold(load(b + p * b_row + n * WIDTH));
    for (int m = 0; m < ROWS; ++m) {
      const auto left = spread(a[m * a_row + p]);
      for (int n = 0; n < N; ++n) sum[m][n] = add_product(sum[m][n], left, right[n]);
    }
  }
  for (int m = 0; m < ROWS; ++m)
    for (int n = 0; n < N; ++n) store(c + m * c_row + n * WIDTH, sum[m][n]);
}

#if HAS_TILES
// 2 · TILE × (N · TILE) of C; `units` is a multiple of TILE.
template <int N>
void in_tiles(const pair* a, int a_row, const pair* b, int b_row, float* c, int c_row, int units, bool add) {
  const std::size_t a_line = a_row * sizeof *a, b_line = b_row * sizeof *b, c_line = c_row * sizeof *c;
  float* const lower = c + TILE * c_row;
  zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
  if (add) {
    load_tile<0>(c, c_line), load_tile<2>(lower, c_line);
    if constexpr (N == 2) load_tile<1>(c + TILE, c_line), load_tile<3>(lower + TILE, c_line);
  }
  for (int p = 0; p < units; p += TILE, a += TILE, b += TILE * b_row) {
    load_tile<4>(a, a_line), load_tile<5>(a + TILE * a_row, a_line), load_tile<6>(b, b_line);
    add_bf16_product<0, 4, 6>(), add_bf16_product<2, 5, 6>();
    if constexpr (N == 2) {
      load_tile<7>(b + TILE, b_line);
      add_bf16_product<1, 4, 7>(), add_bf16_product<3, 5, 7>();
    }
  }
  store_tile<0>(c, c_line), store_tile<2>(lower, c_line);
  if constexpr (N == 2) store_tile<1>(c + TILE, c_line), store_tile<3>(lower + TILE, c_line);
}
#endif

// C (rows × columns) = or += A · B. `rows` is a multiple of ROWS, `columns` of WIDTH.
template <class U>
void multiply(const U* a, int a_row, const U* b, int b_row, float* c, int c_row, int rows, int columns, int units,
              bool add) {
#if HAS_TILES
  if constexpr (std::is_same_v<U, pair>)
    if (tiles_allowed() && rows % (2 * TILE) == 0 && units % TILE == 0) {
      for (int m = 0; m < rows; m += 2 * TILE, a += 2 * TILE * a_row, c += 2 * TILE * c_row)
        for (int n = 0; n < columns; n += 2 * TILE) {
          const auto run = columns - n > TILE ? in_tiles<2> : in_tiles<1>;
          run(a, a_row, b + n, b_row, c + n, c_row, units, add);
        }
      return;
    }
#endif
  for (int n = 0; n < columns; n += ACROSS * WIDTH) {
    const int registers = std::min(ACROSS, (columns - n) / WIDTH);
    const auto run = registers == 4   ? in_registers<4, U>
                     : registers == 3 ? in_registers<3, U>
                     : registers == 2 ? in_registers<2, U>
                                      : in_registers<1, U>;
    for (int m = 0; m < rows; m += ROWS)
      run(a + m * a_row, a_row, b + n, b_row, c + m * c_row + n, c_row, units, add);
  }
}

// A head of a tensor: rows of `width` neighbouring numbers, `row` numbers apart.
template <class T>
struct Head {
  const T* data;
  std::int64_t row;
};

// A register of 32-bit numbers of which some are there, and zeros behind them.
template <class V>
V read_some(const void* from, int there) {
  if (there >= WIDTH) return read<V>(from);
  V some{};
  std::memcpy(&some, from, std::max(0, there) * sizeof some[0]);
  return some;
}

// Asks for a row of `width` numbers ahead of its use: heads lie far apart, and the processor does not see the pattern.
template <class T>
void expect(Head<T> x, int t, int width) {
  for (int d = 0; d < width; d += LINE_BYTES / sizeof(T)) __builtin_prefetch(x.data + t * x.row + d);
}

// out[p][t] = unit p of row t, in lines of `line`; zero for the rows from `rows` to `padded`.
template <class T>
void turn(Head<T> x, int rows, int padded, int width, Unit<T>* out, int line) {
  const int units = width / IN_UNIT<T>;
  for (int t = 0; t < padded; t += WIDTH)
    for (int p = 0; p < units; p += WIDTH) {
      words square[WIDTH] = {};
      for (int i = 0; i < WIDTH; ++i) __builtin_prefetch(x.data + (t + AHEAD + i) * x.row + IN_UNIT<T> * p);
      for (int i = 0; i < std::min(WIDTH, rows - t); ++i)
        square[i] = read_some<words>(x.data + (t + i) * x.row + IN_UNIT<T> * p, units - p);
      transpose(square);
      for (int i = 0; i < std::min(WIDTH, units - p); ++i) write(out + (p + i) * line + t, square[i]);
    }
}

// Rows as the left operand: contiguous, with zero rows up to `padded`.
template <class T>
void gather(Head<T> x, int rows, int padded, int width, T* out) {
  for (int t = 0; t < rows; ++t) std::memcpy(out + t * width, x.data + t * x.row, width * sizeof(T));
  std::memset(out + rows * width, 0, std::size_t(padded - rows) * width * sizeof(T));
}

// out[p][d] = column d of rows 2p, 2p+1 (fp32: of row p); zero for the rows from `rows` to `padded`.
template <class T>
void weave(Head<T> x, int rows, int padded, int width, Unit<T>* out) {
  if constexpr (IN_UNIT<T> == 1) return gather(x, rows, padded, width, out);
  for (int p = 0; p < padded / 2; ++p) {
    expect(x, 2 * p + AHEAD, width), expect(x, 2 * p + 1 + AHEAD, width);
    for (int d = 0; d < width; d += WIDTH) {
      const auto row = [&](int t) {
        return t < rows ? __builtin_convertvector(read<halves>(x.data + t * x.row + d), words) : words{};
      };
      write(out + p * width + d, row(2 * p) | row(2 * p + 1) << 16);
    }
  }
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Uninitialised memory for n numbers, on a cache line's border.
template <class T>
std::unique_ptr<T[], Free> room(std::size_t n) {
  return std::unique_ptr<T[], Free>((T*)std::aligned_alloc(64, (n * sizeof(T) + 63) / 64 * 64));
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
float soften(float* scores, int from, int to, int base, int padded, float scale, T* out, float* sum) {
  floats most = floats{} - INFINITY, sums{};
  for (int n = 0; n < padded; n += WIDTH) {
    const floats s = load(scores + n) * scale;
    most = between(base + n, from, to) & (s > most) ? s : most;
    store(scores + n, s);
  }
  const float highest = reduce(most, [](floats a, floats b) { return a > b ? a : b; });
  for (int n = 0; n < padded; n += WIDTH) {
    const floats e = masked(between(base + n, from, to), exponential(load(scores + n) - highest));
    sums += e;
    store(out + n, e);
  }
  *sum = total(sums);
  return highest + std::log(*sum);
}

// x · y over `width` numbers.
template <class T>
float dot(const T* x, const T* y, int width) {
  floats sum{};
  for (int d = 0; d < width; d += WIDTH) sum = add_product(sum, widen(x + d), widen(y + d));
  return total(sum);
}

// Rows of fp32 numbers, contiguous, as numbers of another tensor, which nobody reads before the caches are full of others.
template <class T>
void copy(const float* x, int rows, int width, T* out, std::int64_t row) {
  for (int t = 0; t < rows; ++t)
    for (int d = 0; d < width; d += WIDTH) pass(out + t * row + d, load(x + t * width + d));
}

// out = softmax(scale · q kᵀ) v over what each position sees, and the log-sum of each row [batch][head][position].
template <class N>
void forward(const Shape* shape, const std::int32_t* starts, const N* q, const Strides* qs, const N* k,
             const Strides* ks, const N* v, const Strides* vs, N* out, const Strides* os, float* log_sums) {
  constexpr int IN = IN_UNIT<N>;
  using U = Unit<N>;
  const int T = shape->length, K = shape->width, padded = rounded(T, BLOCK), line = spaced(padded);
  const int group = shape->heads / shape->kv_heads;
#pragma omp parallel
  {
    const Tiles tiles(TILE, TILE);
    auto keys = room<U>(line * K / IN), values = room<U>(padded * K / IN);
    auto queries = room<N>(BLOCK * K), probabilities = room<N>(BLOCK * line);
    auto scores = room<float>(BLOCK * line), context = room<float>(BLOCK * K);
#pragma omp for collapse(2) schedule(dynamic)
    for (int b = 0; b < shape->batch; ++b)
      for (int g = 0; g < shape->kv_heads; ++g) {
        turn(head(k, *ks, b, g), T, padded, K, keys.get(), line);
        weave(head(v, *vs, b, g), T, padded, K, values.get());
        const std::int32_t* start = starts + std::int64_t(b) * T;
        for (int h = g * group; h < (g + 1) * group; ++h)
          for (int first = 0; first < T; first += BLOCK) {
            const int rows = std::min(BLOCK, T - first);
            const int base = start[first] / COLUMNS<N> * COLUMNS<N>;
            const int columns = rounded(first + rows - base, COLUMNS<N>);
            gather(Head<N>{at(q, *qs, b, h) + first * qs->row, qs->row}, rows, BLOCK, K, queries.get());
            multiply<U>((const U*)queries.get(), K / IN, keys.get() + base, line, scores.get(), line, BLOCK,
                        columns, K / IN, false);
            float sums[BLOCK] = {};
            for (int i = 0; i < rows; ++i) {
              const int t = first + i;
              log_sums[(std::int64_t(b) * shape->heads + h) * T + t] =
                  soften(scores.get() + i * line, start[t], t + 1, base, columns, shape->scale,
                         probabilities.get() + i * line, sums + i);
            }
            multiply<U>((const U*)probabilities.get(), line / IN, values.get() + base / IN * K, K, context.get(),
                        K, BLOCK, K, columns / IN, false);
            for (int i = 0; i < rows; ++i) {
              const float inverse = 1 / sums[i];
              for (int d = 0; d < K; d += WIDTH)
                store(at(out, *os, b, h) + (first + i) * os->row + d, load(context.get() + i * K + d) * inverse);
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
  const int T = shape->length, K = shape->width, padded = rounded(T, BLOCK), line = spaced(padded);
  const int group = shape->heads / shape->kv_heads;
  const std::size_t all = std::size_t(padded) * K;
#pragma omp parallel
  {
    const Tiles tiles(TILE, TILE);
    auto keys = room<U>(all / IN), queries = room<U>(all / IN), queries_turned = room<U>(line * K / IN);
    auto grads = room<U>(all / IN), grads_turned = room<U>(line * K / IN);
    auto key_rows = room<N>(BLOCK * K), value_rows = room<N>(BLOCK * K);
    constexpr int column = rounded(BLOCK / IN, WIDTH);
    auto key_columns = room<U>(column * K);
    auto scores = room<float>(BLOCK * line), slopes = room<float>(BLOCK * line);
    auto probabilities = room<N>(BLOCK * line), steps = room<N>(BLOCK * line);
    auto steps_woven = room<U>(IN == 1 ? 0 : BLOCK / IN * line);
    auto query_sums = room<float>(line * K), query_sums_turned = room<float>(all);
    auto key_sums = room<float>(all), value_sums = room<float>(all);
    auto deltas = room<float>(padded);
#pragma omp for collapse(2) schedule(dynamic)
    for (int b = 0; b < shape->batch; ++b)
      for (int g = 0; g < shape->kv_heads; ++g) {
        const std::int32_t* start = starts + std::int64_t(b) * T;
        weave(head(k, *ks, b, g), T, padded, K, keys.get());
        for (int h = g * group; h < (g + 1) * group; ++h) {
          const Head<N> query = head(q, *qs, b, h), gradient = head(grad, *gs, b, h), context = head(out, *os, b, h);
          const float* log_sum = log_sums + (std::int64_t(b) * shape->heads + h) * T;
          turn(query, T, padded, K, queries_turned.get(), line);
          weave(query, T, padded, K, queries.get());
          turn(gradient, T, padded, K, grads_turned.get(), line);
          weave(gradient, T, padded, K, grads.get());
          for (int t = 0; t < T; ++t) {
            expect(context, t + AHEAD, K);
            deltas[t] = dot(gradient.data + t * gradient.row, context.data + t * context.row, K);
          }
          std::fill_n(query_sums.get(), line * K, 0.0f);
          const bool more = h > g * group;  // Heads of the same keys and values, to whose sums this one's are added.
          for (int first = 0, end = 0; first < T; first += BLOCK) {
            const int rows = std::min(BLOCK, T - first);
            for (end = std::max(end, first + rows); end < T && start[end] < first + rows;) ++end;
            const int columns = rounded(end - first, COLUMNS<N>);
            gather(Head<N>{at(k, *ks, b, g) + first * ks->row, ks->row}, rows, BLOCK, K, key_rows.get());
            gather(Head<N>{at(v, *vs, b, g) + first * vs->row, vs->row}, rows, BLOCK, K, value_rows.get());
            turn(Head<U>{keys.get() + first / IN * K, K}, BLOCK / IN, BLOCK / IN, K, key_columns.get(), column);
            multiply<U>((const U*)key_rows.get(), K / IN, queries_turned.get() + first, line, scores.get(), line,
                        BLOCK, columns, K / IN, false);
            multiply<U>((const U*)value_rows.get(), K / IN, grads_turned.get() + first, line, slopes.get(), line,
                        BLOCK, columns, K / IN, false);
            for (int n = 0; n < columns; n += WIDTH) {
              const int t = first + n;
              const ints real = between(t, 0, T), now = t + COUNTING;
              const ints begin = read_some<ints>(start + t, T - t);
              const floats log_sum_t = read_some<floats>(log_sum + t, T - t);
              const floats delta_t = read_some<floats>(deltas.get() + t, T - t);
              [[maybe_unused]] words woven{};
              for (int j = 0; j < BLOCK; ++j) {
                const ints seen = real & (begin <= first + j) & (now >= first + j);
                const int at = j * line + n;
                const floats score = load(scores.get() + at) * shape->scale;
                const floats p = masked(seen, exponential(score - log_sum_t));
                const floats step = p * (load(slopes.get() + at) - delta_t) * shape->scale;
                store(probabilities.get() + at, p);
                store(steps.get() + at, step);
                if constexpr (IN == 2) {  // Woven, unlike fp32, which needs not be.
                  const words number = __builtin_convertvector(read<halves>(steps.get() + at), words);
                  woven = j % 2 == 0 ? number : woven | number << 16;
                  if (j % 2) write(steps_woven.get() + j / 2 * line + n, woven);
                }
              }
            }
            multiply<U>((const U*)probabilities.get(), line / IN, grads.get() + first / IN * K, K,
                        value_sums.get() + first * K, K, BLOCK, K, columns / IN, more);
            multiply<U>((const U*)steps.get(), line / IN, queries.get() + first / IN * K, K,
                        key_sums.get() + first * K, K, BLOCK, K, columns / IN, more);
            multiply<U>(key_columns.get(), column, IN == 1 ? (const U*)steps.get() : steps_woven.get(), line,
                        query_sums.get() + first, line, K, columns, BLOCK / IN, true);
          }
          turn(Head<float>{query_sums.get(), line}, K, K, padded, query_sums_turned.get(), K);
          copy(query_sums_turned.get(), T, K, at(dq, *dqs, b, h), dqs->row);
        }
        copy(key_sums.get(), T, K, at(dk, *dks, b, g), dks->row);
        copy(value_sums.get(), T, K, at(dv, *dvs, b, g), dvs->row);
      }
    settle();
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
#if defined(__AVX512BF16__)
EXPORT(bf16, bf16)
#endif
EXPORT(fp32, float)
