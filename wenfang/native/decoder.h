// A decoder over quantised weights and a call of it, as the caller lays them out.

#pragma once

#include "quantized.h"

namespace {

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

constexpr int BLOCK = 16;  // Tokens in a block of the cache.

// Where the keys and values of a position of a row's sequence are.
inline std::size_t place_of(const Call& call, int row, int position) {
  return std::size_t(call.tables[call.starts[row] + position / BLOCK]) * BLOCK + position % BLOCK;
}

}  // namespace
