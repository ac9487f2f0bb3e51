// Intel's AMX: registers that hold 16 rows of 64 bytes, and products of them.
//
// sum[m][n] += Σ_p left[m][p] · right[p][n], where a sum has 32 bits, and p counts units of four bytes, multiplied as
// vectors of two bf16 or four int8.

#pragma once

#include "vectors.h"

#include <cstddef>

#if defined(__AMX_BF16__) && defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>

#define HAS_TILES true
namespace {

inline void configure_tiles(const void* shapes) { asm volatile("ldtilecfg (%0)" ::"r"(shapes) : "memory"); }
inline void release_tiles() { asm volatile("tilerelease"); }

template <int T>
void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(T));
}

// Rows lie `stride` bytes apart.
template <int T>
void load_tile(const void* from, std::size_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}

template <int T>
void store_tile(void* to, std::size_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}

template <int SUM, int LEFT, int RIGHT>
void add_bf16_product() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

template <int SUM, int LEFT, int RIGHT>
void add_int8_product() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUM), "i"(LEFT), "i"(RIGHT));
}

// Whether the system lends this process its tiles: it wants to be asked.
inline bool tiles_allowed() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;
  static const bool allowed = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return allowed;
}

}  // namespace
#elif !defined(HAS_TILES)  // Tests bring loops for processors that have none.
#define HAS_TILES false
namespace {

constexpr bool tiles_allowed() { return false; }

}  // namespace
#endif

namespace {

constexpr int TILE = 16;  // Rows, and units in one.

// The calling thread's tiles while this lives, where they are allowed: 0 … 3 for sums, 4 and 5 for left operands, 6 and 7 for
// right ones. Sums of 4 · 6 run over some units and those of 5 · 7 over others.
class Tiles {
 public:
  Tiles([[maybe_unused]] int units, [[maybe_unused]] int others) {
#if HAS_TILES
    if (!tiles_allowed()) return;
    struct {
      std::uint8_t palette = 1, unused[15] = {};
      std::uint16_t bytes[16] = {64, 64, 64, 64};
      std::uint8_t rows[16] = {TILE, TILE, TILE, TILE, TILE, TILE};
    } shapes;
    shapes.bytes[4] = std::uint16_t(4 * units), shapes.bytes[5] = std::uint16_t(4 * others);
    shapes.bytes[6] = shapes.bytes[7] = 4 * TILE;
    shapes.rows[6] = std::uint8_t(units), shapes.rows[7] = std::uint8_t(others);
    configure_tiles(&shapes);
#endif
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
  ~Tiles() {
#if HAS_TILES
    if (tiles_allowed()) release_tiles();
#endif
  }
};

}  // namespace
