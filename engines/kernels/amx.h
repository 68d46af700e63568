// Configures the tile registers of Intel's AMX: 8 registers of 16 rows of 64 bytes. Include it after BLIP2RT_TARGET.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace blip2rt {
namespace {
namespace amx {

constexpr size_t kTileRows = 16, kTileBytes = 64;

// Forces the compiler to complete all stores, including those to `memory`. Not every compiler knows that tile
// instructions read memory.
inline void compiler_barrier(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

// The shape of each tile: its rows and the bytes per row. The thread owns the tiles from load() to _tile_release().
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};

  void set(std::initializer_list<size_t> tiles, size_t of_rows, size_t of_bytes) {
    for (size_t tile : tiles) {
      rows[tile] = static_cast<uint8_t>(of_rows);
      bytes[tile] = static_cast<uint16_t>(of_bytes);
    }
  }
  void load() const {
    compiler_barrier(this);
    _tile_loadconfig(this);
  }
};

}  // namespace amx
}  // namespace
}  // namespace blip2rt
