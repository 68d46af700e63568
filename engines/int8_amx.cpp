// The products of int8_matmul.h in AMX: 32 rows times 32 outputs at once. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                            \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")
#endif
#include "amx.h"
#include "int8_avx512.h"

namespace blip2rt {
namespace {

struct Amx : Avx512 {
  static constexpr size_t kRows = 2 * amx::kTileRows, kDepth = amx::kTileBytes;
};

// Compilers want the numbers of tiles as digits: 0 and 1 are sums of the upper 16 rows, of the one vector and the next,
// 2 and 3 of the lower 16; 4 and 5 the rows' values; 6 and 7 the codes of the one vector and the next.
void use_tiles(size_t rows) {
  const size_t upper = rows < amx::kTileRows ? rows : amx::kTileRows, lower = rows - upper;
  amx::Shapes shapes;
  shapes.set({0, 1, 4}, upper, amx::kTileBytes);
  shapes.set({2, 3, 5}, lower, lower > 0 ? amx::kTileBytes : 0);
  shapes.set({6, 7}, amx::kTileRows, amx::kTileBytes);
  shapes.use();
}

// Up to 32 rows times two of a tile's four vectors, `depth` weights of each: added to `out`, or in place of it.
template <bool Lower>
void multiply_two(const Int8Input& input, const uint8_t* values, const uint8_t* codes, size_t depth, bool add,
                  uint8_t* out) {
  constexpr size_t kStride = kVectors * sizeof(Amx::Ints), kLower = amx::kTileRows * kStride;
  if (add) {
    _tile_loadd(0, out, kStride);
    _tile_loadd(1, out + sizeof(Amx::Ints), kStride);
    if constexpr (Lower) _tile_loadd(2, out + kLower, kStride);
    if constexpr (Lower) _tile_loadd(3, out + kLower + sizeof(Amx::Ints), kStride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Lower) _tile_zero(2);
    if constexpr (Lower) _tile_zero(3);
  }
  for (size_t k = 0; k < depth; k += amx::kTileBytes) {
    const uint8_t* of_k = codes + k / kGroup * kStride;
    _tile_loadd(6, of_k, kStride);
    _tile_loadd(4, values + k, input.width);
    _tile_dpbusd(0, 4, 6);
    _tile_loadd(7, of_k + sizeof(Amx::Ints), kStride);
    _tile_dpbusd(1, 4, 7);
    if constexpr (Lower) {
      _tile_loadd(5, values + amx::kTileRows * input.width + k, input.width);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
  _tile_stored(0, out, kStride);
  _tile_stored(1, out + sizeof(Amx::Ints), kStride);
  if constexpr (Lower) _tile_stored(2, out + kLower, kStride);
  if constexpr (Lower) _tile_stored(3, out + kLower + sizeof(Amx::Ints), kStride);
}

// A part of K after the other: the rows' values of one stay in the first cache for all vectors of all tiles.
template <>
void multiply_strip<Amx>(size_t rows, size_t tiles, const Int8Input& input, size_t depth, const uint8_t* codes,
                         size_t row, Products<Amx>* out) {
  constexpr size_t kPart = 11 * amx::kTileBytes, kTile = kVectors * Amx::kLanes;
  amx::written(codes);
  if (rows < Amx::kRows) use_tiles(rows);
  const auto multiply_vectors = rows > amx::kTileRows ? multiply_two<true> : multiply_two<false>;
  for (size_t k = 0; k < depth; k += kPart) {
    const uint8_t* values = input.values + row * input.width + k;
    for (size_t v = 0; v < tiles * kVectors; v += 2) {
      const size_t tile = v / kVectors, of_tile = v % kVectors;
      const uint8_t* of_vectors = codes + (tile * depth + k) * kTile + of_tile * sizeof(Amx::Ints);
      multiply_vectors(input, values, of_vectors, depth - k < kPart ? depth - k : kPart, k > 0,
                       reinterpret_cast<uint8_t*>(out[tile][0] + of_tile));
    }
  }
  if (rows < Amx::kRows) use_tiles(Amx::kRows);
}

void multiply(const Int8Matrix& matrix, const Int8Input& input, float* out, size_t first, size_t last,
              uint8_t* scratch) {
  use_tiles(Amx::kRows);
  multiply_tiles<Amx>(matrix, input, out, first, last, scratch);
  _tile_release();
}

}  // namespace

extern const Int8Kernel kInt8Amx = kernel<Amx>("amx", multiply);

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
