// One step of a whole decoder over quantised weights (see quantized.h): some tokens of some sequences in, their final
// states out, their keys and values left in the blocks of a paged cache.
//
// Every token is a row, and nothing that a row goes through depends on the other rows: products are exact within a
// group and added in one order, attention adds a query's keys in the order of their positions. So a text is the same
// alone or in company, read at once or in parts.
//
// Threads meet at barriers some ten times in a layer and share the work in between (see Team).

#include "quantized.h"

#include <atomic>
#include <cmath>
#include <omp.h>
#include <sched.h>
#include <vector>

namespace {

constexpr int BLOCK = 16;    // Tokens in a block of the cache.
constexpr int FETCHED = 4;   // Blocks asked for ahead of their use.
constexpr int TOGETHER = 4;  // Neighbouring tokens of a sequence whose queries look at the keys together.

struct Layer {
  Weight q, k, v, o, gate, up, down;
  // fp32; null for none.
  const float *mixer_norm, *mixer_post_norm, *mlp_norm, *mlp_post_norm, *q_norm, *k_norm, *sinks;
  const float *cos, *sin;  // By position, rope_width / 2 each; null for no rotation.
  bf16 *keys, *values;     // [place, kv head, head_dim].
  std::int32_t rope_width, window;  // 0 for no window.
};

struct Decoder {
  const Layer* layers;
  const float* norm;
  std::int32_t count, dim, heads, kv_heads, head_dim, hidden;
  std::int32_t norm_projections;  // Queries and keys are normalised over all heads together.
  std::int32_t gelu;              // GELU by tanh instead of SiLU.
  float eps, scale, softcap;      // 0 for no cap.
};

struct Call {
  float* x;                      // [row, dim]: embeddings in, final states out.
  const std::int32_t* positions;  // By row.
  const std::int32_t* tables;     // Blocks of all sequences, one sequence after the other.
  const std::int32_t* starts;     // By row: where its sequence's blocks begin.
  std::int32_t rows, threads;
};

floats greater(floats a, floats b) { return a > b ? a : b; }

// v[2i] + v[2i + 1] of a, then of b.
template <int... I>
floats add_pairs(floats a, floats b, std::integer_sequence<int, I...>) {
  return __builtin_shuffle(a, b, ints{2 * I...}) + __builtin_shuffle(a, b, ints{2 * I + 1 ...});
}

// The sum of each of WIDTH vectors, in order.
floats sums(floats* v) {
  for (int count = WIDTH; count > 1; count /= 2)
    for (int i = 0; i < count / 2; ++i) v[i] = add_pairs(v[2 * i], v[2 * i + 1], Lanes());
  return v[0];
}

float sum(floats v) {
  float total = 0;
  for (int lane = 0; lane < WIDTH; ++lane) total += v[lane];
  return total;
}

bf16 narrow(float x) {  // To the nearest, ties to even.
  const std::uint32_t bits = read<std::uint32_t>(&x);
  return bf16((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// out = x / rms(x) · weight; `out` may be x.
void normalise(const float* x, const float* weight, int width, float eps, float* out) {
  floats squares = {};
  int i = 0;
  for (; i + WIDTH <= width; i += WIDTH) squares = add_product(squares, read<floats>(x + i), read<floats>(x + i));
  float total = sum(squares);
  for (; i < width; ++i) total += x[i] * x[i];
  const float factor = 1 / std::sqrt(total / float(width) + eps);
  for (i = 0; i < width; ++i) out[i] = x[i] * factor * weight[i];
}

// act(gate) · up.
floats combine(floats gate, floats up, bool gelu) {
  // tanh(z) = 1 − 2 / (1 + e²ᶻ), so 0.5 · x · (1 + tanh(z)) = x / (1 + e⁻²ᶻ).
  const floats z = gelu ? gate * (1.0f + 0.044715f * gate * gate) * 1.59576912f : gate;
  return gate / (1.0f + exponential(-z)) * up;
}

// Threads of one step: pieces of work, and barriers between the phases.
//
// Each thread goes through a range of neighbouring pieces of its own from the front, so that it reads weights as one
// stream; one that is done takes pieces from the back of the others' ranges, so that one that is held up delays the
// rest by a few pieces at most.
class Team {
 public:
  Team(int size, int phases) : size_(size), taken_(new std::atomic<std::uint64_t>[phases * size]) {
    for (int i = 0; i < phases * size; ++i) taken_[i] = 0;
  }

  // Run `work(piece)` for each piece of a phase, and wait for all.
  template <class Work>
  void phase(int number, int pieces, const Work& work) {
    const int me = omp_get_thread_num();
    for (int i = 0; i < size_; ++i) {
      const int whose = (me + i) % size_, begin = pieces * whose / size_, end = pieces * (whose + 1) / size_;
      for (Range some; (some = take(taken_[number * size_ + whose], begin, end, whose == me)).begin < some.end;)
        for (int piece = some.begin; piece < some.end; ++piece) work(piece);
    }
    wait();
  }

 private:
  struct Range {
    int begin, end;
  };

  // A share of what is left of a range: its lower half of `taken` counts pieces gone from the front, its upper half
  // those from the back.
  static Range take(std::atomic<std::uint64_t>& taken, int begin, int end, bool front) {
    std::uint64_t before = taken.load(std::memory_order_relaxed), after;
    int first, last, share;
    do {
      first = begin + int(std::uint32_t(before)), last = end - int(before >> 32);
      share = std::min(last - first, (end - begin + SHARES - 1) / SHARES);
      after = before + (front ? share : std::uint64_t(share) << 32);
    } while (!taken.compare_exchange_weak(before, after, std::memory_order_relaxed));
    return front ? Range{first, first + share} : Range{last - share, last};
  }

  void wait() {
    const int turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    constexpr int PATIENCE = 4000;  // Some ten microseconds; then the processor may be needed by the one waited for.
    for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
      if (spins > PATIENCE) sched_yield();
#if defined(__x86_64__)
      else _mm_pause();
#endif
    }
  }

  static constexpr int SHARES = 8;  // Of a range that are taken one by one.

  const int size_;
  std::unique_ptr<std::atomic<std::uint64_t>[]> taken_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<int> turn_{0};
};

struct Buffers {
  std::unique_ptr<float[]> q, k, v, context, hidden, up, out;
  Rows x, attended, activated;
  Buffers(const Decoder& d, int rows)
      : q(make(rows, d.heads * d.head_dim)), k(make(rows, d.kv_heads * d.head_dim)),
        v(make(rows, d.kv_heads * d.head_dim)), context(make(rows, d.heads * d.head_dim)),
        hidden(make(rows, d.hidden)), up(make(rows, d.hidden)), out(make(rows, d.dim)), x(rows, d.dim),
        attended(rows, d.heads * d.head_dim), activated(rows, d.hidden) {}
  static std::unique_ptr<float[]> make(int rows, int width) {
    return std::unique_ptr<float[]>(new float[std::size_t(rows) * width]);
  }
};

// Runs of neighbouring tokens of one sequence, at most TOGETHER: first row and end.
std::vector<std::pair<int, int>> neighbours(const Call& call) {
  std::vector<std::pair<int, int>> runs;
  for (int row = 0; row < call.rows; ++row) {
    const bool goes_on = row && call.starts[row] == call.starts[row - 1] &&
                         call.positions[row] == call.positions[row - 1] + 1 && row - runs.back().first < TOGETHER;
    if (goes_on)
      runs.back().second = row + 1;
    else
      runs.emplace_back(row, row + 1);
  }
  return runs;
}

class Step {
 public:
  Step(const Decoder& d, const Call& call, Buffers& b, Team& team)
      : d_(d), call_(call), b_(b), team_(team), runs_(neighbours(call)), panel_(call.rows * LANES),
        line_(std::max(d.dim, d.heads * d.head_dim)) {}

  static constexpr int PHASES = 12;  // In a layer, with a norm after each sublayer.

  void run() {
    for (int i = 0; i < d_.count; ++i) layer(d_.layers[i]);
    each_row([&](int row) { normalise(x(row), d_.norm, d_.dim, d_.eps, x(row)); });
  }

 private:
  float* x(int row) { return call_.x + std::size_t(row) * d_.dim; }

  void layer(const Layer& l) {
    prepare(l.mixer_norm, b_.x);
    products({&l.q, &l.k, &l.v}, {b_.q.get(), b_.k.get(), b_.v.get()}, b_.x);
    each_row([&](int row) { keep(l, row); });
    next(int(runs_.size()) * d_.kv_heads,
         [&](int piece) { attend(l, runs_[piece / d_.kv_heads], piece % d_.kv_heads); });
    const int width = d_.heads * d_.head_dim;
    each_row([&](int row) { b_.attended.quantise(row, b_.context.get() + std::size_t(row) * width, width); });
    add(l.o, b_.attended, l.mixer_post_norm);
    prepare(l.mlp_norm, b_.x);
    products({&l.gate, &l.up}, {b_.hidden.get(), b_.up.get()}, b_.x);
    each_row([&](int row) { activate(row); });
    add(l.down, b_.activated, l.mlp_post_norm);
  }

  template <class Work>
  void next(int pieces, const Work& work) {
    team_.phase(phase_++, pieces, work);
  }

  template <class Work>
  void each_row(const Work& work) {
    next(call_.rows, work);
  }

  // act(gate) · up of a row, in eight bits.
  void activate(int row) {
    float *gate = b_.hidden.get() + std::size_t(row) * d_.hidden, *up = b_.up.get() + std::size_t(row) * d_.hidden;
    int i = 0;
    for (; i + WIDTH <= d_.hidden; i += WIDTH)
      write(gate + i, combine(read<floats>(gate + i), read<floats>(up + i), d_.gelu));
    if (i < d_.hidden) {
      floats last = {}, last_up = {};
      std::memcpy(&last, gate + i, (d_.hidden - i) * sizeof(float));
      std::memcpy(&last_up, up + i, (d_.hidden - i) * sizeof(float));
      last = combine(last, last_up, d_.gelu);
      std::memcpy(gate + i, &last, (d_.hidden - i) * sizeof(float));
    }
    b_.activated.quantise(row, gate, d_.hidden);
  }

  // The residual stream, normalised, in eight bits.
  void prepare(const float* norm, Rows& to) {
    each_row([&](int row) {
      if (norm) normalise(x(row), norm, d_.dim, d_.eps, line_.data());
      to.quantise(row, norm ? line_.data() : x(row), d_.dim);
    });
  }

  template <int N>
  void products(const Weight* const (&weights)[N], float* const (&outputs)[N], const Rows& from) {
    int panels = 0;
    for (const Weight* weight : weights) panels += weight->panels;
    next(panels, [&](int piece) {
      int i = 0;
      for (; piece >= weights[i]->panels; ++i) piece -= weights[i]->panels;
      multiply(*weights[i], piece, from, call_.rows, panel_.data());
      place(*weights[i], piece, call_.rows, panel_.data(), outputs[i]);
    });
  }

  // A sublayer's output projection, added to the residual stream; normalised before where a norm is given.
  void add(const Weight& weight, const Rows& from, const float* post_norm) {
    if (post_norm) {
      products({&weight}, {b_.out.get()}, from);
      each_row([&](int row) {
        normalise(b_.out.get() + std::size_t(row) * d_.dim, post_norm, d_.dim, d_.eps, line_.data());
        for (int i = 0; i < d_.dim; ++i) x(row)[i] += line_[i];
      });
      return;
    }
    next(weight.panels, [&](int panel) {
      multiply(weight, panel, from, call_.rows, panel_.data());
      const int first = panel * LANES, kept = std::min(LANES, weight.outputs - first);
      for (int row = 0; row < call_.rows; ++row)
        for (int i = 0; i < kept; ++i) x(row)[first + i] += panel_[row * LANES + i];
    });
  }

  void rotate(const Layer& l, int position, float* head) {
    const int half = l.rope_width / 2;
    const float *cos = l.cos + std::size_t(position) * half, *sin = l.sin + std::size_t(position) * half;
    for (int i = 0; i < half; ++i) {
      const float a = head[i], b = head[half + i];
      head[i] = a * cos[i] - b * sin[i];
      head[half + i] = b * cos[i] + a * sin[i];
    }
  }

  std::size_t place_of(int row, int position) const {
    return std::size_t(call_.tables[call_.starts[row] + position / BLOCK]) * BLOCK + position % BLOCK;
  }

  // Norms and positions of a row's queries and keys; keys and values go to the cache.
  void keep(const Layer& l, int row) {
    const int K = d_.head_dim, wide = d_.kv_heads * K, position = call_.positions[row];
    float *q = b_.q.get() + std::size_t(row) * d_.heads * K, *k = b_.k.get() + std::size_t(row) * wide;
    const auto finish = [&](float* heads, int count, const float* norm) {
      if (norm && d_.norm_projections) normalise(heads, norm, count * K, d_.eps, heads);
      for (int h = 0; h < count; ++h) {
        if (norm && !d_.norm_projections) normalise(heads + h * K, norm, K, d_.eps, heads + h * K);
        if (l.cos) rotate(l, position, heads + h * K);
      }
    };
    finish(q, d_.heads, l.q_norm);
    finish(k, d_.kv_heads, l.k_norm);
    for (int i = 0; i < d_.heads * K; ++i) q[i] *= d_.scale;
    const std::size_t at = place_of(row, position) * wide;
    const float* v = b_.v.get() + std::size_t(row) * wide;
    for (int i = 0; i < wide; ++i) l.keys[at + i] = narrow(k[i]), l.values[at + i] = narrow(v[i]);
  }

  // Contexts of some neighbouring rows' queries of one key/value head.
  void attend(const Layer& l, std::pair<int, int> run, int g) {
    const int group = d_.heads / d_.kv_heads, M = (run.second - run.first) * group;
    const int first_position = call_.positions[run.first], last = call_.positions[run.second - 1];
    const int begin = l.window ? std::max(0, first_position - l.window + 1) / BLOCK * BLOCK : 0;
    const std::size_t S = last / BLOCK * BLOCK + BLOCK - begin;
    scores_.resize(M * S);
    for (int s = 0; s < std::min(int(S), FETCHED * BLOCK); s += BLOCK) fetch(block(l.keys, run, g, begin + s));
    int m = score<4>(l, run, g, 0, M, begin, S);
    m = score<3>(l, run, g, m, M, begin, S);
    m = score<2>(l, run, g, m, M, begin, S);
    score<1>(l, run, g, m, M, begin, S);
    for (m = 0; m < M; ++m) soften(l, &scores_[m * S], S, g * group + m % group);
    m = collect<4>(l, run, g, 0, M, begin, last, S);
    m = collect<3>(l, run, g, m, M, begin, last, S);
    m = collect<2>(l, run, g, m, M, begin, last, S);
    collect<1>(l, run, g, m, M, begin, last, S);
  }

  int row_of(int first, int m) const { return first + m / (d_.heads / d_.kv_heads); }

  // Where query m of a run and key/value head begins.
  std::size_t head_at(int first, int g, int m) const {
    const int group = d_.heads / d_.kv_heads;
    return (std::size_t(row_of(first, m)) * d_.heads + g * group + m % group) * d_.head_dim;
  }

  // A head's keys or values in the block of the cache that holds a position of a run.
  const bf16* block(const bf16* cache, std::pair<int, int> run, int g, int position) const {
    return cache + (place_of(run.first, position) * d_.kv_heads + g) * d_.head_dim;
  }

  // Ask for a block that will be needed: its rows lie too far apart for the processor to guess.
  void fetch(const bf16* rows) const {
    for (int s = 0; s < BLOCK; ++s)
      for (int i = 0; i < d_.head_dim; i += 32) __builtin_prefetch(rows + s * d_.kv_heads * d_.head_dim + i);
  }

  // Scores of a run's queries from number m on, Q at a time, for S keys; −∞ for those that a query must not see.
  template <int Q>
  int score(const Layer& l, std::pair<int, int> run, int g, int m, int M, int begin, std::size_t S) {
    for (; m + Q <= M; m += Q)
      for (int s = 0; s < int(S); s += BLOCK) {
        const bf16* keys = block(l.keys, run, g, begin + s);
        if (s + FETCHED * BLOCK < int(S)) fetch(block(l.keys, run, g, begin + s + FETCHED * BLOCK));
        fetch(block(l.values, run, g, begin + s));
        floats products[Q][BLOCK];
        for (int k = 0; k < BLOCK; ++k, keys += d_.kv_heads * d_.head_dim) {
          floats product[Q] = {};
          for (int i = 0; i < d_.head_dim; i += WIDTH) {
            const floats key = widen(keys + i);
            for (int n = 0; n < Q; ++n)
              product[n] = add_product(product[n], read<floats>(b_.q.get() + head_at(run.first, g, m + n) + i), key);
          }
          for (int n = 0; n < Q; ++n) products[n][k] = product[n];
        }
        for (int n = 0; n < Q; ++n)
          for (int k = 0; k < BLOCK; k += WIDTH)
            write(&scores_[(m + n) * S + s + k],
                  see(l, sums(products[n] + k), begin + s + k, row_of(run.first, m + n)));
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

  // Scores into weights that sum to 1, or less where a sink takes its share.
  void soften(const Layer& l, float* scores, std::size_t S, int head) const {
    floats highest = floats{} - INFINITY;
    for (std::size_t s = 0; s < S; s += WIDTH) highest = greater(highest, read<floats>(scores + s));
    float most = l.sinks ? l.sinks[head] : -INFINITY;
    for (int lane = 0; lane < WIDTH; ++lane) most = std::max(most, highest[lane]);
    floats total = {};
    for (std::size_t s = 0; s < S; s += WIDTH) {
      const floats weight = exponential(read<floats>(scores + s) - most);
      total += weight;
      write(scores + s, weight);
    }
    const float whole = sum(total) + (l.sinks ? std::exp(l.sinks[head] - most) : 0);
    for (std::size_t s = 0; s < S; s += WIDTH) write(scores + s, read<floats>(scores + s) / whole);
  }

  // Σ weight · value for M queries at a time, over keys in the order of their positions.
  template <int Q>
  int collect(const Layer& l, std::pair<int, int> run, int g, int m, int M, int begin, int last, std::size_t S) {
    const std::size_t stride = std::size_t(d_.kv_heads) * d_.head_dim;
    for (; m + Q <= M; m += Q)
      for (int i = 0; i < d_.head_dim; i += WIDTH) {
        floats context[Q] = {};
        for (int first = begin; first <= last; first += BLOCK) {
          const bf16* values = block(l.values, run, g, first) + i;
          const float* weights = &scores_[m * S + first - begin];
          for (int s = 0; s < std::min(BLOCK, last - first + 1); ++s) {
            const floats value = widen(values + s * stride);
            for (int n = 0; n < Q; ++n) context[n] = add_product(context[n], value, spread(weights[n * S + s]));
          }
        }
        for (int n = 0; n < Q; ++n) write(b_.context.get() + head_at(run.first, g, m + n) + i, context[n]);
      }
    return m;
  }

  const Decoder& d_;
  const Call& call_;
  Buffers& b_;
  Team& team_;
  const std::vector<std::pair<int, int>> runs_;
  std::vector<float> panel_, line_, scores_;
  int phase_ = 0;
};

}  // namespace

// `head_dim` must be a multiple of LANES.
extern "C" void decoder_step(const Decoder* decoder, const Call* call) {
  Buffers buffers(*decoder, call->rows);
  std::unique_ptr<Team> team;
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
#pragma omp single  // There may be fewer threads than asked for.
    team.reset(new Team(omp_get_num_threads(), decoder->count * Step::PHASES + 1));
    Step(*decoder, *call, buffers, *team).run();
  }
}
