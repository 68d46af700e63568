// The products of int4_matmul.h in AMX where there are many rows: 16 of them times 16 outputs at once. Few are
// multiplied as int4_avx512.cpp does. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")
#endif
#include "amx.h"
#include "int4_avx512.h"

namespace blip2rt {
namespace {

struct Amx : Avx512 {};

// Compilers want the numbers of tiles as digits: 0 are the sums of the values' products, 1 of the low values'; 2 and 3
// the two, 4 the codes. A block of 32 fills half a tile.
void use_tiles(size_t block) {
  const size_t depth = block < amx::kTileBytes ? block : amx::kTileBytes;
  amx::Shapes shapes;
  shapes.set({0, 1}, amx::kTileRows, amx::kTileBytes);
  shapes.set({2, 3}, amx::kTileRows, depth);
  shapes.set({4}, depth / sizeof(int32_t), amx::kTileBytes);
  shapes.use();
}

// Values (and low ones) of 16 rows times one block of a tile.
template <bool Split>
void multiply_block(const Int4Input& input, const uint8_t* codes, size_t block, size_t at, size_t width,
                    Amx::Ints (*sums)[amx::kTileRows]) {
  _tile_zero(0);
  if constexpr (Split) _tile_zero(1);
  for (size_t k = 0; k < block; k += amx::kTileBytes) {
    _tile_loadd(4, codes + k * Amx::kLanes, amx::kTileBytes);
    _tile_loadd(2, input.values + at + k, width);
    _tile_dpbsud(0, 2, 4);
    if constexpr (Split) {
      _tile_loadd(3, input.low + at + k, width);
      _tile_dpbsud(1, 3, 4);
    }
  }
  _tile_stored(0, sums[0], amx::kTileBytes);
  if constexpr (Split) _tile_stored(1, sums[1], amx::kTileBytes);
}

template <>
struct Many<Amx> {
  static constexpr size_t kRows = amx::kTileRows;

  template <bool Split>
  static void multiply(const Int4Matrix& m, const Int4Input& input, const uint8_t* codes, const Scales<Amx>& scales,
                       size_t row, Ahead& ahead, float* sums) {
    amx::written(codes);
    const size_t blocks = m.blocks(), width = blocks * m.block;
    Amx::Floats total[kRows];
    for (auto& t : total) t = Amx::zero();
    alignas(64) Amx::Ints products[2][kRows];
    for (size_t block = 0; block < blocks; ++block) {
      const size_t at = row * width + block * m.block;
      ahead.step();
      multiply_block<Split>(input, codes + block * m.block * Amx::kLanes, m.block, at, width, products);
      const Amx::Floats scale = Amx::load_floats(scales.scale + block * Amx::kLanes);
      const Amx::Floats offset = Amx::load_floats(scales.offset + block * Amx::kLanes);
      for (size_t r = 0; r < kRows; ++r) {
        const size_t of_row = (row + r) * blocks + block;
        const Amx::Ints product = Split ? Amx::join(products[0][r], products[1][r]) : products[0][r];
        const Amx::Floats whole = Amx::mul(Amx::to_float(product), Amx::broadcast(input.scales[of_row]));
        total[r] = Amx::mul_add(whole, scale, Amx::mul_sub(offset, Amx::broadcast(input.sums[of_row]), total[r]));
      }
    }
    for (size_t r = 0; r < kRows; ++r) Amx::store(sums + r * Amx::kLanes, total[r]);
  }
};

void multiply_with_tiles(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                         uint8_t* scratch) {
  const bool many = input.rows >= Many<Amx>::kRows;
  if (many) use_tiles(m.block);
  multiply<Amx>(m, input, out, first, last, scratch);
  if (many) _tile_release();
}

}  // namespace

extern const Int4Kernel kInt4Amx = {"amx", Amx::kLanes, quantize<Amx>, multiply_with_tiles};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
