// Attention of a call's rows over a paged cache.
//
// The softmax is computed online (FlashAttention), SPAN positions at a time, always the same ones together, and what
// one span after the other gives is joined in that order. So a query's result is the same whoever asks beside it, and
// whether one thread went through all its spans or several through some (Flash-Decoding). A thread reads whole blocks,
// all heads of them, which lie side by side.

#pragma once

#include "decoder.h"

#include <cmath>
#include <vector>

namespace {

constexpr int SPAN = 4 * BLOCK;
constexpr int QUERY_ROWS = HAS_TILES ? 16 : 4;  // Neighbouring tokens of a sequence whose queries look at keys together.
constexpr int PREFETCHED = 4;   // Blocks of keys that are fetched before their use.
constexpr int SHARE = 4;        // A thread's work may be in this many pieces; of one that is larger others can take spans.
constexpr std::size_t MOST_NUMBERS = 1 << 24;  // That partial results by spans may take.
constexpr float LOWEST = -1e30f;  // A score below any, whose difference from −∞ is a number.

// Σ e^(score − max) and, in the memory behind it, the context: Σ e^(score − max) · value, head_dim numbers.
struct Partial {
  float max, sum;
  float* context() { return reinterpret_cast<float*>(this + 1); }
};

// Neighbouring rows of one sequence, and a range of the spans that their queries see.
struct Piece {
  int first, end, begin_span, end_span;
  std::size_t partial;  // Number of the first row's first head's partial result.
};

// Register `part` of those that LANES bf16 numbers fill. With AVX2 one load serves two: even and odd numbers.
inline floats load_part(const bf16* from, int part) {
  if constexpr (WIDTH == 8) {
    const words both = read<words>(from);
    return (floats)(part ? both & 0xFFFF0000 : both << 16);
  }
  return widen(from + part * WIDTH);
}

// Where number `i` of LANES is in the registers of `load_part`.
constexpr int place_in_parts(int i) { return WIDTH == 8 ? i % 2 * WIDTH + i / 2 : i; }

// Put numbers, a multiple of LANES, into the order of `load_part`.
inline void arrange(float* numbers, int count) {
  float before[LANES];
  for (float* const end = numbers + count; numbers < end; numbers += LANES) {
    std::memcpy(before, numbers, sizeof before);
    for (int i = 0; i < LANES; ++i) numbers[place_in_parts(i)] = before[i];
  }
}

// The sum of v[i] in lane i. Two vectors fold into one: lanes without bit B keep a's and those with it b's, each plus
// lane ^ B of the same vector.
template <int B = 1>
floats sums(floats* v) {
  const ints with = (COUNTING & B) != 0;
  for (int i = 0; i < WIDTH / 2 / B; ++i) {
    const floats a = v[2 * i], b = v[2 * i + 1];
    v[i] = (with ? b : a) + __builtin_shuffle(with ? a : b, COUNTING ^ B);
  }
  if constexpr (2 * B < WIDTH) return sums<2 * B>(v);
  return v[0];
}

inline float sum(floats v) {
  float total = 0;
  for (int lane = 0; lane < WIDTH; ++lane) total += v[lane];
  return total;
}

// A layer's attention in pieces for some threads.
class Plan {
 public:
  Plan(const Decoder& d, const Call& call) : d_(d), call_(call) {
    for (int row = 0; row < call.rows; ++row) {
      const bool goes_on = row && call.starts[row] == call.starts[row - 1] &&
                           call.positions[row] == call.positions[row - 1] + 1 && row - runs_.back() < QUERY_ROWS;
      if (!goes_on) runs_.push_back(row);
      run_of_.push_back(int(runs_.size()) - 1);
    }
    runs_.push_back(call.rows);
  }

  // Cut it for a layer's window, 0 for none.
  void cut(int window) {
    std::int64_t all_spans = 0;
    for (int run = 0; run < runs(); ++run) all_spans += spans(run, window).second - spans(run, window).first;
    pieces_.clear();
    firsts_.clear();
    std::size_t partials = 0;
    for (int run = 0; run < runs(); ++run) {
      const auto [begin, end] = spans(run, window);
      const int first = runs_[run], end_row = runs_[run + 1];
      const std::size_t own = std::size_t(end_row - first) * d_.heads;
      const bool by_spans = call_.threads > 1 && std::int64_t(end - begin) * SHARE * call_.threads > all_spans &&
                            (partials + (end - begin) * own) * width() <= MOST_NUMBERS;
      const int step = by_spans ? 1 : end - begin;
      firsts_.push_back(int(pieces_.size()));
      for (int span = begin; span < end; span += step, partials += own)
        pieces_.push_back({first, end_row, span, span + step, partials});
    }
    firsts_.push_back(int(pieces_.size()));
  }

  const std::vector<Piece>& pieces() const { return pieces_; }

  // Numbers that all partial results take at most, whatever the window.
  std::size_t numbers() const {
    std::size_t by_spans = 0;
    for (int run = 0; run < runs(); ++run)
      by_spans += std::size_t(spans(run, 0).second) * (runs_[run + 1] - runs_[run]) * d_.heads * width();
    return std::min(by_spans, MOST_NUMBERS + std::size_t(call_.rows) * d_.heads * width());
  }

  // The partial result of a piece's row and head.
  Partial& partial(float* all, const Piece& piece, int row, int head) const {
    return reinterpret_cast<Partial&>(
        all[(piece.partial + std::size_t(row - piece.first) * d_.heads + head) * width()]);
  }

  // Pieces that a row is in: first and end.
  std::pair<int, int> pieces_of(int row) const { return {firsts_[run_of_[row]], firsts_[run_of_[row] + 1]}; }

 private:
  int runs() const { return int(runs_.size()) - 1; }
  std::size_t width() const { return sizeof(Partial) / sizeof(float) + d_.head_dim; }

  // Spans that a run's queries see: first and end.
  std::pair<int, int> spans(int run, int window) const {
    const int oldest = window ? std::max(0, call_.positions[runs_[run]] - window + 1) : 0;
    return {oldest / SPAN, call_.positions[runs_[run + 1] - 1] / SPAN + 1};
  }

  const Decoder& d_;
  const Call& call_;
  std::vector<int> runs_, run_of_, firsts_;  // Rows where runs begin; by row, its run; by run, its first piece.
  std::vector<Piece> pieces_;
};

// One thread's part in attention.
class Attention {
 public:
  Attention(const Decoder& d, const Call& call, const float* q, const Plan& plan, float* partials)
      : d_(d), call_(call), q_(q), plan_(plan), partials_(partials), group_(d.heads / d.kv_heads),
        stride_(std::size_t(d.kv_heads) * d.head_dim), in_tiles_(tiles_allowed() && d.head_dim % (2 * TILE) == 0),
        scores_(std::size_t(QUERY_ROWS) * d.heads * SPAN),
        queries_(in_tiles_ ? std::size_t(d.heads) * QUERY_ROWS * d.head_dim / 2 : 0),
        values_(in_tiles_ ? SPAN / 2 * d.head_dim : 0) {}

  // Partial results of a piece's queries.
  void attend(const Layer& l, int number) {
    const Piece& piece = plan_.pieces()[number];
    for (int row = piece.first; row < piece.end; ++row)
      for (int h = 0; h < d_.heads; ++h) {
        Partial& partial = plan_.partial(partials_, piece, row, h);
        partial.max = LOWEST, partial.sum = 0;
        std::fill_n(partial.context(), d_.head_dim, 0.0f);
      }
    if (&l != last_layer_ || number != last_piece_ + 1) {
      prefetched_piece_ = number, prefetched_position_ = piece.begin_span * SPAN;
      for (int i = 0; i < PREFETCHED; ++i) {
        const bf16* keys = next_prefetched(l);
        for (int g = 0; g < d_.kv_heads; ++g) fetch(keys + g * d_.head_dim, BLOCK);
      }
    }
    last_layer_ = &l, last_piece_ = number;
#if HAS_TILES
    if (in_tiles_) turn_queries(piece);
#endif
    for (int span = piece.begin_span; span < piece.end_span; ++span) attend_span(l, piece, span * SPAN);
  }

  // A row's contexts of all heads, once the partial results of all pieces are there.
  void finish(const Layer& l, int row, float* context) const {
    const auto [first, end] = plan_.pieces_of(row);
    for (int h = 0; h < d_.heads; ++h, context += d_.head_dim) {
      Partial& whole = plan_.partial(partials_, plan_.pieces()[first], row, h);
      for (int p = first + 1; p < end; ++p) {
        Partial& next = plan_.partial(partials_, plan_.pieces()[p], row, h);
        const Factors by = join(whole, next.max, next.sum);
        for (int i = 0; i < d_.head_dim; i += WIDTH) add(whole.context() + i, read<floats>(next.context() + i), by);
      }
      const float total = whole.sum + (l.sinks ? std::exp(l.sinks[h] - whole.max) : 0);
      for (int i = 0; i < d_.head_dim; i += LANES)
        for (int j = 0; j < LANES; ++j) context[i + j] = whole.context()[i + place_in_parts(j)] / total;
    }
  }

 private:
  struct Factors {
    float old, next;
  };

  // Keys or values of a position and, behind them, of those that follow in its block.
  const bf16* at(const bf16* cache, const Piece& piece, int position) const {
    return cache + place_of(call_, piece.first, position) * stride_;
  }

  int last_position(const Piece& piece) const {
    return std::min(call_.positions[piece.end - 1], piece.end_span * SPAN - 1);
  }

  // The next block of keys to fetch. It goes on into the following pieces, which this thread most likely gets.
  const bf16* next_prefetched(const Layer& l) {
    const Piece& piece = plan_.pieces()[prefetched_piece_];
    const bf16* keys = at(l.keys, piece, prefetched_position_);
    if (prefetched_position_ + BLOCK <= last_position(piece))
      prefetched_position_ += BLOCK;
    else if (prefetched_piece_ + 1 < int(plan_.pieces().size()))
      prefetched_position_ = plan_.pieces()[++prefetched_piece_].begin_span * SPAN;
    return keys;
  }

  // Ask for a head's numbers at some places: neighbours lie too far apart for the processor to guess.
  void fetch(const bf16* numbers, int places) const {
    for (int k = 0; k < places; ++k)
      for (int i = 0; i < d_.head_dim; i += 32) __builtin_prefetch(numbers + k * stride_ + i);
  }

  // What the span from a position on gives a piece's queries.
  void attend_span(const Layer& l, const Piece& piece, int from) {
    const int count = std::min(SPAN, last_position(piece) + 1 - from), M = (piece.end - piece.first) * group_;
    for (int s = 0; s < count; s += BLOCK) {
      const bf16 *keys = at(l.keys, piece, from + s), *values = at(l.values, piece, from + s);
      const bf16* next = next_prefetched(l);
      for (int g = 0; g < d_.kv_heads; ++g) {
        const int head = g * d_.head_dim;
#if HAS_TILES
        if (in_tiles_) {
          fetch(next + head, BLOCK), fetch(values + head, BLOCK);
          score_in_tiles(l, piece, g, M, keys + head, from, s);
          continue;
        }
#endif
        int m = score<4>(l, piece, g, 0, M, keys + head, next + head, values + head, from, s);
        m = score<3>(l, piece, g, m, M, keys + head, next + head, values + head, from, s);
        m = score<2>(l, piece, g, m, M, keys + head, next + head, values + head, from, s);
        score<1>(l, piece, g, m, M, keys + head, next + head, values + head, from, s);
      }
    }
    for (int g = 0; g < d_.kv_heads; ++g) {
#if HAS_TILES
      if (in_tiles_) {
        add_values_in_tiles(l, piece, g, M, from, count);
        continue;
      }
#endif
      int m = add_values<4>(l, piece, g, 0, M, from, count);
      m = add_values<3>(l, piece, g, m, M, from, count);
      m = add_values<2>(l, piece, g, m, M, from, count);
      add_values<1>(l, piece, g, m, M, from, count);
    }
  }

  // Query m of a piece and a key/value head: its row, its head, and its scores of a span.
  int row_of(const Piece& piece, int m) const { return piece.first + m / group_; }
  int head_of(int g, int m) const { return g * group_ + m % group_; }
  float* scores(int g, int m) { return &scores_[(std::size_t(g) * QUERY_ROWS * group_ + m) * SPAN]; }

  // Scores of Q queries at a time, from number m on, for the block of keys at `keys`, `s` positions into a span; −∞ for
  // those that a query must not see. `next` are keys, and `values` values, that will be needed.
  template <int Q>
  int score(const Layer& l, const Piece& piece, int g, int m, int M, const bf16* keys, const bf16* next,
            const bf16* values, int from, int s) {
    constexpr int KEYS = Q < 4 ? 4 : 2;  // Looked at together; their sums fill most registers.
    for (; m + Q <= M; m += Q) {
      const float* queries[Q];
      int rows[Q];
      for (int n = 0; n < Q; ++n) {
        rows[n] = row_of(piece, m + n);
        queries[n] = q_ + (std::size_t(rows[n]) * d_.heads + head_of(g, m + n)) * d_.head_dim;
      }
      floats products[Q][BLOCK];
      for (int k = 0; k < BLOCK; k += KEYS) {
        if (m == 0) fetch(next + k * stride_, KEYS), fetch(values + k * stride_, KEYS);
        floats product[KEYS][Q] = {};
        for (int i = 0; i < d_.head_dim; i += LANES)
          for (int part = 0; part < PARTS; ++part) {
            floats query[Q];
            for (int n = 0; n < Q; ++n) query[n] = read<floats>(queries[n] + i + part * WIDTH);
            for (int j = 0; j < KEYS; ++j) {
              const floats key = load_part(keys + (k + j) * stride_ + i, part);
              for (int n = 0; n < Q; ++n) product[j][n] = add_product(product[j][n], query[n], key);
            }
          }
        for (int j = 0; j < KEYS; ++j)
          for (int n = 0; n < Q; ++n) products[n][k + j] = product[j][n];
      }
      for (int n = 0; n < Q; ++n) {
        float* to = scores(g, m + n) + s;
        for (int k = 0; k < BLOCK; k += WIDTH)
          write(to + k, cap_and_mask(l, sums(products[n] + k), from + s + k, rows[n]));
      }
    }
    return m;
  }

  // Scores of the keys from position `first` on, capped, and −∞ where the row must not look.
  floats cap_and_mask(const Layer& l, floats scores, int first, int row) const {
    if (d_.softcap) {  // tanh(z) = 1 − 2 / (1 + e²ᶻ).
      const floats z = scores * (2 / d_.softcap);
      scores = d_.softcap - 2 * d_.softcap / (1.0f + exponential(z));
    }
    const ints at = COUNTING + first;
    const int own = call_.positions[row], oldest = l.window ? own - l.window + 1 : 0;
    return (at > own) | (at < oldest) ? floats{} - INFINITY : scores;
  }

  // Join what a span's `count` values give Q queries at a time, from number m on.
  template <int Q>
  int add_values(const Layer& l, const Piece& piece, int g, int m, int M, int from, int count) {
    for (; m + Q <= M; m += Q) {
      const float* weights[Q];
      float* contexts[Q];
      Factors by[Q];
      for (int n = 0; n < Q; ++n) {
        Partial& partial = plan_.partial(partials_, piece, row_of(piece, m + n), head_of(g, m + n));
        weights[n] = scores(g, m + n), contexts[n] = partial.context();
        by[n] = softmax(partial, scores(g, m + n), count);
      }
      for (int i = 0; i < d_.head_dim; i += LANES) {
        floats context[Q][PARTS] = {};
        for (int s = 0; s < count; s += BLOCK) {
          const bf16* values = at(l.values, piece, from + s) + g * d_.head_dim + i;
          for (int k = s; k < std::min(s + BLOCK, count); ++k, values += stride_)
            for (int part = 0; part < PARTS; ++part) {
              const floats value = load_part(values, part);
              for (int n = 0; n < Q; ++n)
                context[n][part] = add_product(context[n][part], value, spread(weights[n][k]));
            }
        }
        for (int n = 0; n < Q; ++n)
          for (int part = 0; part < PARTS; ++part) add(contexts[n] + i + part * WIDTH, context[n][part], by[n]);
      }
    }
    return m;
  }

#if HAS_TILES
  static_assert(BLOCK == TILE && LANES == TILE && SPAN % (2 * TILE) == 0);

  // A piece's queries in bf16 as tiles take them: of each TILE, from number m on, pairs of neighbouring numbers side by side.
  std::uint32_t* turned(int g, int m) {
    return &queries_[(std::size_t(g) * QUERY_ROWS * group_ + m) * d_.head_dim / 2];
  }

  void turn_queries(const Piece& piece) {
    const int M = (piece.end - piece.first) * group_;
    for (int g = 0; g < d_.kv_heads; ++g)
      for (int m = 0; m < M; m += TILE)
        for (int i = 0; i < d_.head_dim; i += 2 * TILE) {
          words square[TILE] = {};
          for (int n = 0; n < std::min(TILE, M - m); ++n) {
            const float* query = q_ + (std::size_t(row_of(piece, m + n)) * d_.heads + head_of(g, m + n)) * d_.head_dim + i;
            const halves pairs[] = {narrow(read<floats>(query)), narrow(read<floats>(query + TILE))};
            std::memcpy(&square[n], pairs, sizeof pairs);
          }
          transpose(square);
          std::memcpy(turned(g, m) + i / 2 * TILE, square, sizeof square);
        }
  }

  // As `score`, for all queries of a piece.
  void score_in_tiles(const Layer& l, const Piece& piece, int g, int M, const bf16* keys, int from, int s) {
    for (int m = 0; m < M; m += TILE) {
      const std::uint32_t* queries = turned(g, m);
      zero_tile<0>();
      for (int i = 0; i < d_.head_dim; i += 2 * TILE, queries += TILE * TILE) {
        load_tile<4>(keys + i, stride_ * sizeof *keys), load_tile<6>(queries, TILE * sizeof *queries);
        add_bf16_product<0, 4, 6>();
      }
      words products[TILE];  // By key and query.
      store_tile<0>(products, sizeof *products);
      transpose(products);
      for (int n = 0; n < std::min(TILE, M - m); ++n)
        write(scores(g, m + n) + s, cap_and_mask(l, (floats)products[n], from + s, row_of(piece, m + n)));
    }
  }

  // As `add_values`, for all queries of a piece.
  void add_values_in_tiles(const Layer& l, const Piece& piece, int g, int M, int from, int count) {
    const int K = d_.head_dim;
    for (int s = 0; s < SPAN; s += 2) {  // Two positions' values side by side.
      const bf16* first = s < count ? at(l.values, piece, from + s) + g * K : nullptr;
      const bf16* second = s + 1 < count ? first + stride_ : nullptr;
      for (int i = 0; i < K; i += TILE) {
        const words low = first ? bits_of(first + i) : words{}, high = second ? bits_of(second + i) : words{};
        write(&values_[s / 2 * K + i], low | high << 16);
      }
    }
    for (int m = 0; m < M; m += TILE) {
      bf16 weights[TILE][SPAN] = {};
      float* contexts[TILE];
      Factors by[TILE];
      const int there = std::min(TILE, M - m);
      for (int n = 0; n < there; ++n) {
        Partial& partial = plan_.partial(partials_, piece, row_of(piece, m + n), head_of(g, m + n));
        contexts[n] = partial.context();
        by[n] = softmax(partial, scores(g, m + n), count);
        for (int s = 0; s < count; s += WIDTH) write(&weights[n][s], narrow(read<floats>(scores(g, m + n) + s)));
      }
      for (int i = 0; i < K; i += TILE) {
        zero_tile<0>();
        for (int s = 0; s < count; s += 2 * TILE) {
          load_tile<4>(&weights[0][s], sizeof *weights), load_tile<6>(&values_[s / 2 * K + i], K * sizeof values_[0]);
          add_bf16_product<0, 4, 6>();
        }
        floats context[TILE];
        store_tile<0>(context, sizeof *context);
        for (int n = 0; n < there; ++n) add(contexts[n] + i, context[n], by[n]);
      }
    }
  }

  static words bits_of(const bf16* numbers) { return __builtin_convertvector(read<halves>(numbers), words); }
#endif

  // A span's scores into e^(score − their max), counted in a partial result.
  static Factors softmax(Partial& partial, float* scores, int count) {
    floats highest = floats{} + LOWEST;
    for (int s = 0; s < count; s += WIDTH) {
      const floats score = read<floats>(scores + s);
      highest = score > highest ? score : highest;
    }
    float max = LOWEST;
    for (int lane = 0; lane < WIDTH; ++lane) max = std::max(max, highest[lane]);
    floats total = {};
    for (int s = 0; s < count; s += WIDTH) {
      const floats weight = exponential(read<floats>(scores + s) - max);
      total += weight;
      write(scores + s, weight);
    }
    return join(partial, max, sum(total));
  }

  // Count the next span's max and sum in a partial result; returns what its context and the next one are multiplied by.
  static Factors join(Partial& partial, float next_max, float next_sum) {
    const float max = std::max(partial.max, next_max);
    const floats factors = exponential(floats{partial.max, next_max} - max);
    partial = {max, partial.sum * factors[0] + next_sum * factors[1]};
    return {factors[0], factors[1]};
  }

  static void add(float* context, floats next, Factors by) {
    write(context, add_product(read<floats>(context) * by.old, next, spread(by.next)));
  }

  const Decoder& d_;
  const Call& call_;
  const float* q_;
  const Plan& plan_;
  float* partials_;
  const int group_;           // Queries that share a key/value head.
  const std::size_t stride_;  // From one place to the next.
  const bool in_tiles_;
  std::vector<float> scores_;
  std::vector<std::uint32_t> queries_, values_;  // In pairs of bf16, for tiles.
  const Layer* last_layer_ = nullptr;
  int last_piece_ = -1;
  int prefetched_piece_ = 0, prefetched_position_ = 0;  // Of the next block of keys to fetch.
};

}  // namespace
