// Tiles and their products as loops, for processors without AMX (see wenfang/native/tiles.h). Compile with `-include`.

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#define HAS_TILES true

namespace stand_in {

struct Shapes {
  std::uint8_t palette, others[15];
  std::uint16_t bytes[16];
  std::uint8_t rows[16];
};

inline thread_local Shapes shapes;
inline thread_local std::uint8_t tiles[8][16][64];

// sum[m][n] += Σ_p left[m][p] · right[p][n] by vectors of T.
template <class Sum, class T, class Widen>
void add_product(int sum, int left, int right, Widen widen) {
  constexpr int IN_UNIT = 4 / sizeof(T);
  for (int m = 0; m < shapes.rows[left]; ++m)
    for (int n = 0; n < 16; ++n) {
      Sum total;
      std::memcpy(&total, &tiles[sum][m][4 * n], 4);
      for (int p = 0; p < shapes.bytes[left] / 4; ++p)
        for (int i = 0; i < IN_UNIT; ++i) {
          T a, b;
          std::memcpy(&a, &tiles[left][m][4 * p + i * sizeof(T)], sizeof(T));
          std::memcpy(&b, &tiles[right][p][4 * n + i * sizeof(T)], sizeof(T));
          total += widen(a) * widen(b);
        }
      std::memcpy(&tiles[sum][m][4 * n], &total, 4);
    }
}

}  // namespace stand_in

inline bool tiles_allowed() { return true; }
inline void configure_tiles(const void* shapes) { std::memcpy(&stand_in::shapes, shapes, sizeof stand_in::shapes); }
inline void release_tiles() { stand_in::shapes = {}; }

template <int T>
void zero_tile() {
  std::memset(stand_in::tiles[T], 0, sizeof stand_in::tiles[T]);
}

template <int T>
void load_tile(const void* from, std::size_t stride) {
  for (int m = 0; m < stand_in::shapes.rows[T]; ++m)
    std::memcpy(stand_in::tiles[T][m], (const char*)from + m * stride, stand_in::shapes.bytes[T]);
}

template <int T>
void store_tile(void* to, std::size_t stride) {
  for (int m = 0; m < stand_in::shapes.rows[T]; ++m)
    std::memcpy((char*)to + m * stride, stand_in::tiles[T][m], stand_in::shapes.bytes[T]);
}

template <int SUM, int LEFT, int RIGHT>
void add_bf16_product() {
  stand_in::add_product<float, std::uint16_t>(SUM, LEFT, RIGHT, [](unsigned x) {
    x <<= 16;
    float number;
    std::memcpy(&number, &x, sizeof number);
    return number;
  });
}

template <int SUM, int LEFT, int RIGHT>
void add_int8_product() {
  stand_in::add_product<std::int32_t, std::int8_t>(SUM, LEFT, RIGHT, [](int x) { return x; });
}
