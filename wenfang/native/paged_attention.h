// Attention of a call's rows over a paged cache.
//
// A query looks at SPAN positions at a time, always the same ones together, and what it has seen of one span after the
// other is added up in that order. So its result is the same whoever asks beside it, and whether one thread went
// through all spans or each through some. A thread reads whole blocks, all heads of them, which lie side by side.

#pragma once

#include "decoder.h"

#include <cmath>
#include <tuple>
#include <vector>

namespace {

constexpr int SPAN = 4 * BLOCK;
constexpr int TOGETHER = 4;    // Neighbouring tokens of a sequence whose queries look at the keys together.
constexpr int SOON = 4;        // Blocks of keys that are asked for before their use.
constexpr float NEVER = -1e30f;  // A score below any, whose difference from −∞ is a number.

// What a query has seen of the spans so far. Its memory goes on with the context, head_dim numbers: Σ weight · value. A
// weight is e^(score − highest).
struct Seen {
  float highest, total;
  float* context() { return reinterpret_cast<float*>(this + 1); }
};

// Neighbouring rows of one sequence, and a range of the spans that their queries see.
struct Piece {
  int first, end, begin_span, end_span;
  std::size_t seen;  // Number of the first row's first head's Seen.
};

// Number `part` of the registers that hold LANES bf16 numbers. With AVX2 one load serves two: even and odd numbers.
inline floats open(const bf16* from, int part) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  const words both = read<words>(from);
  return (floats)(part ? both & 0xFFFF0000 : both << 16);
#else
  return widen(from + part * WIDTH);
#endif
}

// Where `open` finds a number of LANES: in the order of parts and lanes.
inline int found(int number) {
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
  return number % 2 * WIDTH + number / 2;
#else
  return number;
#endif
}

// Queries, a multiple of LANES numbers, in the order of `open`.
inline void arrange(float* numbers, int count) {
  float before[LANES];
  for (float* const end = numbers + count; numbers < end; numbers += LANES) {
    std::memcpy(before, numbers, sizeof before);
    for (int i = 0; i < LANES; ++i) numbers[found(i)] = before[i];
  }
}

inline floats greater(floats a, floats b) { return a > b ? a : b; }

// The sum of each of WIDTH vectors, in order. Of two, lanes with bit B take one, the others the other, each its half of
// what lanes with and without B hold.
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

// The work of a layer's attention, cut for some threads. Many rows are cut by rows alone; few by spans, too.
class Plan {
 public:
  Plan(const Decoder& d, const Call& call) : d_(d), call_(call) {
    for (int row = 0; row < call.rows; ++row) {
      const bool goes_on = row && call.starts[row] == call.starts[row - 1] &&
                           call.positions[row] == call.positions[row - 1] + 1 && row - runs_.back() < TOGETHER;
      if (!goes_on) runs_.push_back(row);
      run_of_.push_back(int(runs_.size()) - 1);
    }
    runs_.push_back(call.rows);
    by_spans_ = int(runs_.size()) - 1 < 4 * call.threads;
    cut(0);
    size_ = pieces_.empty() ? 0 : pieces_.back().seen + std::size_t(TOGETHER) * d.heads;
  }

  // Cut it for a layer's window.
  void cut(int window) {
    pieces_.clear();
    firsts_.clear();
    std::size_t seen = 0;
    for (std::size_t run = 0; run + 1 < runs_.size(); ++run) {
      const int first = runs_[run], end = runs_[run + 1];
      const int oldest = window ? std::max(0, call_.positions[first] - window + 1) : 0;
      const int begin_span = oldest / SPAN, end_span = call_.positions[end - 1] / SPAN + 1;
      const int spans = by_spans_ ? 1 : end_span - begin_span;
      firsts_.push_back(int(pieces_.size()));
      for (int span = begin_span; span < end_span; span += spans, seen += std::size_t(end - first) * d_.heads)
        pieces_.push_back({first, end, span, span + spans, seen});
    }
    firsts_.push_back(int(pieces_.size()));
  }

  const std::vector<Piece>& pieces() const { return pieces_; }
  // Numbers that all Seen take, without a window.
  std::size_t numbers() const { return size_ * width(); }
  // The Seen of a piece's row and head.
  Seen& seen(float* all, const Piece& piece, int row, int head) const {
    return reinterpret_cast<Seen&>(all[(piece.seen + std::size_t(row - piece.first) * d_.heads + head) * width()]);
  }
  // Pieces that a row is in: first and end.
  std::pair<int, int> pieces_of(int row) const { return {firsts_[run_of_[row]], firsts_[run_of_[row] + 1]}; }

 private:
  std::size_t width() const { return sizeof(Seen) / sizeof(float) + d_.head_dim; }

  const Decoder& d_;
  const Call& call_;
  std::vector<int> runs_, run_of_, firsts_;  // Rows where runs begin; by row, its run; by run, its first piece.
  std::vector<Piece> pieces_;
  std::size_t size_ = 0;
  bool by_spans_ = false;
};

// One thread's part in attention.
class Attention {
 public:
  Attention(const Decoder& d, const Call& call, const float* q, const Plan& plan, float* seen)
      : d_(d), call_(call), q_(q), plan_(plan), seen_(seen), scores_(std::size_t(TOGETHER) * d.heads * SPAN) {}

  void attend(const Layer& l, int number) {
    const Piece& piece = plan_.pieces()[number];
    for (int row = piece.first; row < piece.end; ++row)
      for (int h = 0; h < d_.heads; ++h) {
        Seen& seen = plan_.seen(seen_, piece, row, h);
        seen.highest = NEVER, seen.total = 0;
        std::fill_n(seen.context(), d_.head_dim, 0.0f);
      }
    if (&l != layer_ || number != number_ + 1) {
      soon_ = number, soon_position_ = piece.begin_span * SPAN;
      for (int i = 0; i < SOON; ++i) {
        const bf16* keys = soon(l);
        for (int g = 0; g < d_.kv_heads; ++g) fetch(keys + g * d_.head_dim, BLOCK);
      }
    }
    layer_ = &l, number_ = number;
    for (int span = piece.begin_span; span < piece.end_span; ++span) look(l, piece, span * SPAN);
  }

  // A row's contexts of all heads, from what the pieces have seen of it.
  void finish(const Layer& l, int row, float* context) const {
    const auto [first, end] = plan_.pieces_of(row);
    for (int h = 0; h < d_.heads; ++h, context += d_.head_dim) {
      Seen& whole = plan_.seen(seen_, plan_.pieces()[first], row, h);
      for (int i = first + 1; i < end; ++i) {
        Seen& next = plan_.seen(seen_, plan_.pieces()[i], row, h);
        const auto [old, fresh] = join(whole, next.highest, next.total);
        for (int i = 0; i < d_.head_dim; i += WIDTH) add(whole.context() + i, old, read<floats>(next.context() + i), fresh);
      }
      const float total = whole.total + (l.sinks ? std::exp(l.sinks[h] - whole.highest) : 0);
      for (int i = 0; i < d_.head_dim; i += LANES)
        for (int lane = 0; lane < LANES; ++lane) context[i + lane] = whole.context()[i + found(lane)] / total;
    }
  }

 private:
  int group() const { return d_.heads / d_.kv_heads; }
  std::size_t stride() const { return std::size_t(d_.kv_heads) * d_.head_dim; }

  // Where the block of a position begins.
  const bf16* block(const bf16* cache, const Piece& piece, int position) const {
    return cache + place_of(call_, piece.first, position) * stride();
  }

  int last_position(const Piece& piece) const {
    return std::min(call_.positions[piece.end - 1], piece.end_span * SPAN - 1);
  }

  // The next block of keys to ask for. It goes on into the following pieces, which this thread most likely gets.
  const bf16* soon(const Layer& l) {
    const bf16* keys = block(l.keys, plan_.pieces()[soon_], soon_position_);
    if (soon_position_ + BLOCK <= last_position(plan_.pieces()[soon_]))
      soon_position_ += BLOCK;
    else if (soon_ + 1 < int(plan_.pieces().size()))
      soon_position_ = plan_.pieces()[++soon_].begin_span * SPAN;
    return keys;
  }

  // Ask for a head's numbers at some places that will be needed: neighbours lie too far apart for the processor to guess.
  void fetch(const bf16* numbers, int places) const {
    for (int k = 0; k < places; ++k)
      for (int i = 0; i < d_.head_dim; i += 32) __builtin_prefetch(numbers + k * stride() + i);
  }

  // Look at the span from a position on.
  void look(const Layer& l, const Piece& piece, int from) {
    const int there = std::min(SPAN, last_position(piece) + 1 - from);
    const int M = (piece.end - piece.first) * group();
    for (int s = 0; s < there; s += BLOCK) {
      const bf16 *keys = block(l.keys, piece, from + s), *next = soon(l), *values = block(l.values, piece, from + s);
      for (int g = 0; g < d_.kv_heads; ++g) {
        const int at = g * d_.head_dim;
        int m = score<4>(l, piece, g, 0, M, keys + at, next + at, values + at, from, s);
        m = score<3>(l, piece, g, m, M, keys + at, next + at, values + at, from, s);
        m = score<2>(l, piece, g, m, M, keys + at, next + at, values + at, from, s);
        score<1>(l, piece, g, m, M, keys + at, next + at, values + at, from, s);
      }
    }
    for (int g = 0; g < d_.kv_heads; ++g) {
      int m = collect<4>(l, piece, g, 0, M, from, there);
      m = collect<3>(l, piece, g, m, M, from, there);
      m = collect<2>(l, piece, g, m, M, from, there);
      collect<1>(l, piece, g, m, M, from, there);
    }
  }

  // Query m of a piece's rows and a key/value head: its row and head.
  int row_of(const Piece& piece, int m) const { return piece.first + m / group(); }
  int head_of(int g, int m) const { return g * group() + m % group(); }
  float* scores(const Piece& piece, int g, int m) {
    return &scores_[(std::size_t(g) * (piece.end - piece.first) * group() + m) * SPAN];
  }

  // Scores of Q queries at a time, from number m on, for the block of keys at `keys`, `s` positions into a span; −∞ for
  // those that a query must not see.
  template <int Q>
  int score(const Layer& l, const Piece& piece, int g, int m, int M, const bf16* keys, const bf16* next,
            const bf16* values, int from, int s) {
    constexpr int KEYS = Q < 4 ? 4 : 2;  // Looked at together; their sums fill most registers.
    for (; m + Q <= M; m += Q) {
      const float* queries[Q];
      for (int n = 0; n < Q; ++n)
        queries[n] = q_ + (std::size_t(row_of(piece, m + n)) * d_.heads + head_of(g, m + n)) * d_.head_dim;
      floats products[Q][BLOCK];
      for (int k = 0; k < BLOCK; k += KEYS) {
        if (m < Q) fetch(next + k * stride(), KEYS), fetch(values + k * stride(), KEYS);
        floats sum[KEYS][Q] = {};
        for (int i = 0; i < d_.head_dim; i += LANES)
          for (int part = 0; part < PARTS; ++part) {
            floats query[Q];
            for (int n = 0; n < Q; ++n) query[n] = read<floats>(queries[n] + i + part * WIDTH);
            for (int j = 0; j < KEYS; ++j) {
              const floats key = open(keys + (k + j) * stride() + i, part);
              for (int n = 0; n < Q; ++n) sum[j][n] = add_product(sum[j][n], query[n], key);
            }
          }
        for (int j = 0; j < KEYS; ++j)
          for (int n = 0; n < Q; ++n) products[n][k + j] = sum[j][n];
      }
      for (int n = 0; n < Q; ++n)
        for (int k = 0; k < BLOCK; k += WIDTH)
          write(scores(piece, g, m + n) + s + k, see(l, sums(products[n] + k), from + s + k, row_of(piece, m + n)));
    }
    return m;
  }

  // Scores of the keys from position `first` on, capped, and −∞ where the row must not look.
  floats see(const Layer& l, floats scores, int first, int row) const {
    if (d_.softcap) {  // tanh(z) = 1 − 2 / (1 + e²ᶻ).
      const floats z = scores * (2 / d_.softcap);
      scores = d_.softcap - 2 * d_.softcap / (1.0f + exponential(z));
    }
    const ints at = COUNTING + first;
    const int own = call_.positions[row], oldest = l.window ? own - l.window + 1 : 0;
    return (at > own) | (at < oldest) ? floats{} - INFINITY : scores;
  }

  // Add what Q queries at a time, from number m on, see of a span's values.
  template <int Q>
  int collect(const Layer& l, const Piece& piece, int g, int m, int M, int from, int there) {
    for (; m + Q <= M; m += Q) {
      const float* weights[Q];
      float *contexts[Q], old[Q], fresh[Q];
      for (int n = 0; n < Q; ++n) {
        Seen& seen = plan_.seen(seen_, piece, row_of(piece, m + n), head_of(g, m + n));
        weights[n] = scores(piece, g, m + n), contexts[n] = seen.context();
        std::tie(old[n], fresh[n]) = weigh(seen, scores(piece, g, m + n), there);
      }
      for (int i = 0; i < d_.head_dim; i += LANES) {
        floats context[Q][PARTS] = {};
        for (int s = 0; s < there; s += BLOCK) {
          const bf16* values = block(l.values, piece, from + s) + g * d_.head_dim + i;
          for (int k = s; k < std::min(s + BLOCK, there); ++k, values += stride())
            for (int part = 0; part < PARTS; ++part) {
              const floats value = open(values, part);
              for (int n = 0; n < Q; ++n)
                context[n][part] = add_product(context[n][part], value, spread(weights[n][k]));
            }
        }
        for (int n = 0; n < Q; ++n)
          for (int part = 0; part < PARTS; ++part)
            add(contexts[n] + i + part * WIDTH, old[n], context[n][part], fresh[n]);
      }
    }
    return m;
  }

  // A span's scores into weights; returns what `join` does.
  static std::pair<float, float> weigh(Seen& seen, float* scores, int there) {
    floats highest = floats{} + NEVER;
    for (int s = 0; s < there; s += WIDTH) highest = greater(highest, read<floats>(scores + s));
    float most = NEVER;
    for (int lane = 0; lane < WIDTH; ++lane) most = std::max(most, highest[lane]);
    floats total = {};
    for (int s = 0; s < there; s += WIDTH) {
      const floats weight = exponential(read<floats>(scores + s) - most);
      total += weight;
      write(scores + s, weight);
    }
    return join(seen, most, sum(total));
  }

  // Count the next span's highest score and total weight; returns what the old context and the next one count now.
  static std::pair<float, float> join(Seen& seen, float highest, float total) {
    const float most = std::max(seen.highest, highest);
    const floats factors = exponential(floats{seen.highest, highest} - most);
    seen = {most, seen.total * factors[0] + total * factors[1]};
    return {factors[0], factors[1]};
  }

  static void add(float* context, float old, floats next, float fresh) {
    write(context, add_product(read<floats>(context) * old, next, spread(fresh)));
  }

  const Decoder& d_;
  const Call& call_;
  const float* q_;
  const Plan& plan_;
  float* seen_;
  std::vector<float> scores_;
  const Layer* layer_ = nullptr;
  int number_ = -1;                   // Of the last piece.
  int soon_ = 0, soon_position_ = 0;  // Where keys are asked for next.
};

}  // namespace
