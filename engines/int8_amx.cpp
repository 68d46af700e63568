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

// Up to 32 rows times two of a tile's four vectors.
template <bool Lower>
void multiply_two(const Int8Input& input, const uint8_t* codes, size_t row, Ahead& ahead, size_t lines, uint8_t* out) {
  constexpr size_t kStride = kVectors * sizeof(Amx::Ints);
  const uint8_t* values = input.values + row * input.width;
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (Lower) _tile_zero(2);
  if constexpr (Lower) _tile_zero(3);
  for (size_t k = 0; k < input.width; k += amx::kTileBytes) {
    ahead.ask(lines);
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
  if constexpr (Lower) _tile_stored(2, out + amx::kTileRows * kStride, kStride);
  if constexpr (Lower) _tile_stored(3, out + amx::kTileRows * kStride + sizeof(Amx::Ints), kStride);
}

template <>
void multiply_some<Amx>(size_t rows, const Int8Input& input, const uint8_t* codes, size_t row, Ahead& ahead,
                        Amx::Ints (*out)[kVectors]) {
  amx::written(codes);
  if (rows < Amx::kRows) use_tiles(rows);
  // All at once would keep the tiles' own lines waiting.
  const size_t steps = kVectors / 2 * (input.width / amx::kTileBytes), lines = (ahead.left() + steps - 1) / steps;
  for (size_t v = 0; v < kVectors; v += 2) {
    const uint8_t* of_vectors = codes + v * sizeof(Amx::Ints);
    uint8_t* to = reinterpret_cast<uint8_t*>(out[0] + v);
    if (rows > amx::kTileRows) {
      multiply_two<true>(input, of_vectors, row, ahead, lines, to);
    } else {
      multiply_two<false>(input, of_vectors, row, ahead, lines, to);
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
