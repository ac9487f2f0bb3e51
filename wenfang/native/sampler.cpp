// The next token of each row: temperature, top-k, top-p and min-p, and one draw; or the likeliest token.
//
// Nothing is sorted. Where a truncation ends is found by bisection over the bit patterns of fp32, so that the tokens kept
// are exactly those of a sort, ties included. A row's result depends on that row alone.

#include "vectors.h"

#include <algorithm>
#include <limits>
#include <memory>

namespace {

constexpr int CHAINS = 4;   // Sums that run side by side, or each addition would wait for the one before.
constexpr int CHUNK = 64;   // Vectors summed in fp32 before their sum goes to fp64.
constexpr int NARROW = 4;   // Steps of a bisection between two looks at what is still between its ends.
constexpr float NEARLY = 1 - 0x1p-20f;
constexpr float INFINITE = std::numeric_limits<float>::infinity();

using longs = std::uint64_t __attribute__((vector_size(WIDTH * 4)));

bool any(ints mask) {
  const longs parts = (longs)mask;
  std::uint64_t all = 0;
  for (int i = 0; i < WIDTH / 2; ++i) all |= parts[i];
  return all != 0;
}

float highest(floats x) {
  float most = x[0];
  for (int lane = 1; lane < WIDTH; ++lane) most = std::max(most, x[lane]);
  return most;
}

// −ln(1 − u) for 0 < u < 1, as exact near 0 as elsewhere.
floats minus_log1p(floats u) {
  const ints half = ints{} + 0x3f3504f3;  // √½
  const ints bits = (ints)(1.0f - u);
  const ints power = (bits - half) >> 23;
  const floats rest = power == 0 ? -u : (floats)(bits - (power << 23)) - 1.0f;
  floats sum = rest * 7.0376836292e-2f - 1.1514610310e-1f;  // The polynomial of Cephes' logf.
  sum = sum * rest + 1.1676998740e-1f;
  sum = sum * rest - 1.2420140846e-1f;
  sum = sum * rest + 1.4249322787e-1f;
  sum = sum * rest - 1.6668057665e-1f;
  sum = sum * rest + 2.0000714765e-1f;
  sum = sum * rest - 2.4999993993e-1f;
  sum = sum * rest + 3.3333331174e-1f;
  const floats square = rest * rest, whole = to_float(power);
  sum = sum * rest * square + whole * -2.12194440e-4f - square * 0.5f;
  return -(rest + sum + whole * 0.693359375f);
}

words mix(words bits) {
  bits = (bits ^ (words)((ints)bits >> 16)) * 0x7FEB352Du;
  bits = (bits ^ (words)((ints)bits >> 15)) * 0x846CA68Bu;
  return bits ^ (words)((ints)bits >> 16);
}

// What the exponential variables of these tokens, −ln(1 − u), follow from, as `wenfang.engine.noise` defines them.
floats noise(std::uint64_t key, ints tokens) {
  const words bits = mix(mix((words)tokens + std::uint32_t(key)) ^ std::uint32_t(key >> 32));
  const floats u = (to_float((ints)(bits & 0x7FFFFFFFu)) + 0.5f) * 0x1p-31f;
  const floats most = floats{} + (1.0f - 0x1p-24f);
  return u < most ? u : most;
}

struct Row {
  const float* logits;
  const std::uint32_t* allowed;  // One bit for each token; null where all are.
  std::uint64_t key;             // What the noise follows from.
  float temperature;             // 0 takes the likeliest token.
  float top_p, min_p;
  std::int32_t top_k;
};

// One vector of a row's logits; −∞ where a token is not allowed or there is none.
floats logits(const Row& row, int vector, int V) {
  floats x = floats{} - INFINITE;
  const int first = vector * WIDTH;
  if (first >= V) return x;
  if (first + WIDTH <= V)
    std::memcpy(&x, row.logits + first, sizeof x);
  else
    std::memcpy(&x, row.logits + first, (V - first) * sizeof(float));
  if (!row.allowed) return x;
  const std::uint32_t bits = row.allowed[first / 32] >> first % 32;
  return ((ints{} + std::int32_t(bits)) >> COUNTING & 1) == 1 ? x : floats{} - INFINITE;
}

// The token whose lane holds the best value, of several the first.
template <class Better>
int first_of(floats values, ints tokens, Better better) {
  int best = 0;
  for (int lane = 1; lane < WIDTH; ++lane)
    if (better(values[lane], values[best]) || (values[lane] == values[best] && tokens[lane] < tokens[best])) best = lane;
  return tokens[best];
}

int likeliest(const Row& row, int V) {
  floats most = floats{} - INFINITE;
  ints chosen{};
  for (int vector = 0; vector * WIDTH < V; ++vector) {
    const floats x = logits(row, vector, V);
    const ints higher = x > most;
    most = higher ? x : most;
    chosen = higher ? COUNTING + vector * WIDTH : chosen;
  }
  return first_of(most, chosen, [](float left, float right) { return left > right; });
}

// What the values of at least `least` weigh together: as much as they are, or one each.
template <bool COUNT>
double weight(const floats* values, int vectors, float least) {
  double total = 0;
  for (int first = 0; first < vectors; first += CHUNK) {
    floats sums[CHAINS] = {};
    for (int vector = first; vector < std::min(first + CHUNK, vectors); vector += CHAINS)
      for (int i = 0; i < CHAINS; ++i) {
        const floats x = values[vector + i];
        sums[i] += x >= least ? (COUNT ? floats{} + 1.0f : x) : floats{};
      }
    const floats sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    for (int lane = 0; lane < WIDTH; ++lane) total += sum[lane];
  }
  return total;
}

// Whole numbers in the order of the floating-point numbers.
std::int32_t place(float x) {
  std::int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits ^ (bits >> 31 & 0x7FFFFFFF);
}

float at(std::int32_t place) {
  const std::int32_t bits = place ^ (place >> 31 & 0x7FFFFFFF);
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// The largest value such that those at least as large weigh `enough` together; it lies between `low` and `high`.
template <bool COUNT>
float last_needed(const floats* values, int vectors, double enough, float low, float high, floats* room) {
  std::int64_t below = place(low), above = std::int64_t(place(high)) + 1;
  double heavier = 0;  // What those weigh that are too large to be looked at any longer.
  for (int step = 1; above - below > 1; ++step) {
    const std::int32_t middle = std::int32_t((below + above) >> 1);
    (heavier + weight<COUNT>(values, vectors, at(middle)) >= enough ? below : above) = middle;
    if (step % NARROW) continue;
    int kept = 0;
    const float from = at(std::int32_t(below)), to = at(std::int32_t(above));
    double gone = weight<COUNT>(values, vectors, to);
    for (int vector = 0; vector < vectors; ++vector) {
      const floats x = values[vector];
      const bool between = any((x >= from) & (x < to));
      room[kept] = x;
      kept += between;
    }
    while (kept % CHAINS) room[kept++] = floats{} - INFINITE;
    heavier += gone - weight<COUNT>(room, kept, to);
    values = room, vectors = kept;
  }
  return at(std::int32_t(below));
}

// A race of exponential variables: a token arrives at its noise over its weight.
int first_to_arrive(const floats* weights, int vectors, float least, std::uint64_t key) {
  floats best = floats{} + INFINITE;
  ints winner = ints{} - 1;
  for (int vector = 0; vector < vectors; ++vector) {
    const ints kept = weights[vector] >= least;
    if (!any(kept)) continue;
    const ints tokens = COUNTING + vector * WIDTH;
    const floats u = noise(key, tokens);
    if (!any(kept & (u * NEARLY < best * weights[vector]))) continue;  // −ln(1 − u) ≥ u, so most need no logarithm.
    const floats arrival = minus_log1p(u) / weights[vector];
    const ints sooner = kept & (arrival < best);
    best = sooner ? arrival : best;
    winner = sooner ? tokens : winner;
  }
  return first_of(best, winner, [](float left, float right) { return left < right; });
}

// `values` and `room` hold a row each.
int drawn(const Row& row, int V, int vectors, floats* values, floats* room) {
  floats most = floats{} - INFINITE;
  for (int vector = 0; vector < vectors; ++vector) {
    const floats x = logits(row, vector, V) / row.temperature;
    values[vector] = x;
    most = x > most ? x : most;
  }
  const float top = highest(most);
  float bound = -INFINITE;
  if (row.top_k && row.top_k < V) bound = last_needed<true>(values, vectors, row.top_k, -INFINITE, top, room);
  for (int vector = 0; vector < vectors; ++vector) {
    const floats x = values[vector];
    values[vector] = x >= bound ? exponential(x - top) : floats{};
  }
  float least = std::max(row.min_p, std::numeric_limits<float>::min());
  if (row.top_p < 1.0f) {
    const double total = weight<false>(values, vectors, 0.0f), enough = total * row.top_p;
    const float low = float((total - enough) / V / 2);  // All that are smaller weigh too little to be needed.
    least = std::max(least, last_needed<false>(values, vectors, enough, low, 1.0f, room));
  }
  const int token = first_to_arrive(values, vectors, least, row.key);
  return token < 0 ? likeliest(row, V) : token;  // Nobody arrives where temperature divided to infinity.
}

}  // namespace

// chosen[i] is the next token of rows[i], out of V.
extern "C" void sample(const Row* rows, std::int32_t* chosen, std::int32_t count, std::int32_t V, std::int32_t threads) {
  const int vectors = (V + CHAINS * WIDTH - 1) / (CHAINS * WIDTH) * CHAINS;
#pragma omp parallel for schedule(dynamic) num_threads(std::min(threads, count)) if (threads > 1 && count > 1)
  for (int i = 0; i < count; ++i) {
    if (rows[i].temperature == 0.0f) {
      chosen[i] = likeliest(rows[i], V);
      continue;
    }
    // Kept between calls: fresh memory costs as much as the work.
    static thread_local std::unique_ptr<floats[]> room;
    static thread_local int size = 0;
    if (size < 2 * vectors) room.reset(new floats[2 * vectors]), size = 2 * vectors;
    chosen[i] = drawn(rows[i], V, vectors, room.get(), room.get() + vectors);
  }
}
