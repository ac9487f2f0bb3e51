// One step of a whole decoder over quantised weights (see quantized.h): some tokens of some sequences in, their final
// states out, their keys and values left in the blocks of a paged cache.
//
// Every token is a row, and nothing that a row goes through depends on the other rows: products are exact within a
// group and added in one order, and so is what a query sees (see paged_attention.h). So a text is the same alone or in
// company, read at once or in parts.
//
// Threads meet at barriers some ten times in a layer and share the work in between (see Team).

#include "paged_attention.h"

#include <atomic>
#include <omp.h>
#include <sched.h>

namespace {

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
  std::unique_ptr<float[]> q, k, v, partials, hidden, up, out;
  Rows x, attended, activated;
  Buffers(const Decoder& d, int rows, std::size_t numbers)
      : q(make(rows, d.heads * d.head_dim)), k(make(rows, d.kv_heads * d.head_dim)),
        v(make(rows, d.kv_heads * d.head_dim)), partials(new float[numbers]),
        hidden(make(rows, d.hidden)), up(make(rows, d.hidden)), out(make(rows, d.dim)), x(rows, d.dim),
        attended(rows, d.heads * d.head_dim), activated(rows, d.hidden) {}
  static std::unique_ptr<float[]> make(int rows, int width) {
    return std::unique_ptr<float[]>(new float[std::size_t(rows) * width]);
  }
};

class Step {
 public:
  Step(const Decoder& d, const Call& call, const Plan& plan, Buffers& b, Team& team)
      : d_(d), call_(call), b_(b), team_(team), plan_(plan), attention_(d, call, b.q.get(), plan_, b.partials.get()),
        products_(call.rows), line_(std::max(d.dim, d.heads * d.head_dim)) {}

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
    plan_.cut(l.window);
    next(int(plan_.pieces().size()), [&](int piece) { attention_.attend(l, piece); });
    each_row([&](int row) {
      attention_.finish(l, row, line_.data());
      b_.attended.quantise(row, line_.data(), d_.heads * d_.head_dim);
    });
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
      place(*weights[i], piece, call_.rows, products_.multiply(*weights[i], piece, from), outputs[i]);
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
      const float* added = products_.multiply(weight, panel, from);
      const int first = panel * LANES, kept = std::min(LANES, weight.outputs - first);
      for (int row = 0; row < call_.rows; ++row)
        for (int i = 0; i < kept; ++i) x(row)[first + i] += added[row * LANES + i];
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
    arrange(q, d_.heads * K);
    const std::size_t at = place_of(call_, row, position) * wide;
    const float* v = b_.v.get() + std::size_t(row) * wide;
    for (int i = 0; i < wide; i += WIDTH) {
      write(l.keys + at + i, narrow(read<floats>(k + i)));
      write(l.values + at + i, narrow(read<floats>(v + i)));
    }
  }

  const Decoder& d_;
  const Call& call_;
  Buffers& b_;
  Team& team_;
  Plan plan_;
  Attention attention_;
  Products products_;
  std::vector<float> line_;
  int phase_ = 0;
};

}  // namespace

// `head_dim` must be a multiple of LANES.
extern "C" void decoder_step(const Decoder* decoder, const Call* call) {
  const Plan plan(*decoder, *call);
  Buffers buffers(*decoder, call->rows, plan.numbers());
  std::unique_ptr<Team> team;
#pragma omp parallel num_threads(call->threads) if (call->threads > 1)
  {
#pragma omp single  // There may be fewer threads than asked for.
    team.reset(new Team(omp_get_num_threads(), decoder->count * Step::PHASES + 1));
    const Tiles tiles(TILE, STEPS);
    Step(*decoder, *call, plan, buffers, *team).run();
  }
}
