// Sets up the tiles of Intel's AMX: 8 registers of 16 rows of 64 bytes each. A file includes this behind its target
// pragma.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace blip2rt {
namespace {
namespace amx {

constexpr size_t kTileRows = 16, kTileBytes = 64;

// Makes the compiler write everything, at `memory` too, before it goes on: not all compilers know that tiles are loaded
// from memory.
inline void compiler_barrier(const void* memory) { __asm__ volatile("" : : "r"(memory) : "memory"); }

// The shape of every tile: its rows, and the bytes of a row. From use() to _tile_release() the thread has the tiles.
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
