// The products of matmul.h in AMX: 16 rows times 16 outputs together. Few rows are multiplied as avx512.cpp does it.
// Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8"))), \
    apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")
#endif
#include "kernels/amx.h"

#include "kernels/int4/avx512.h"

namespace blip2rt {
namespace {

constexpr size_t kAtOnce = amx::kTileRows, kLanes = Avx512::kLanes;
constexpr size_t kMany = 7;    // rows, at least, for which tiles of them pay
constexpr size_t kMost = 128;  // rows whose sums are kept while a tile is multiplied
// Blocks that are multiplied before their products are scaled: scaling would wait for each tile.
constexpr size_t kTogether = 8;
static_assert(Int4Input::kTile == kAtOnce, "room for whole tiles of rows");

// Compilers want the numbers of tiles as digits. 0 holds the sums of the values' products, 1 those of the low values; 2
// holds values, 3 low values, 4 codes. A block of 32 fills half a tile. A tile of fewer rows takes less time.
void use_tiles(size_t block, size_t rows) {
  const size_t depth = block < amx::kTileBytes ? block : amx::kTileBytes, height = rows < kAtOnce ? rows : kAtOnce;
  amx::Shapes shapes;
  shapes.set({0, 1}, height, amx::kTileBytes);
  shapes.set({2, 3}, height, depth);
  shapes.set({4}, depth / sizeof(int32_t), amx::kTileBytes);
  shapes.use();
}

// Multiplies values (and low ones) of 16 rows with one block of a tile.
template <bool Split>
void multiply_block(const Int4Input& input, const uint8_t* codes, size_t block, size_t at, size_t width,
                    Avx512::Ints (*products)[kAtOnce]) {
  _tile_zero(0);
  if constexpr (Split) _tile_zero(1);
  for (size_t k = 0; k < block; k += amx::kTileBytes) {
    _tile_loadd(4, codes + k * kLanes, amx::kTileBytes);
    _tile_loadd(2, input.values + at + k, width);
    _tile_dpbssd(0, 2, 4);
    if constexpr (Split) {
      _tile_loadd(3, input.low + at + k, width);
      _tile_dpbssd(1, 3, 4);
    }
  }
  _tile_stored(0, products[0], amx::kTileBytes);
  if constexpr (Split) _tile_stored(1, products[1], amx::kTileBytes);
}

// Some blocks of a tile: codes minus zero points, and scales.
struct Blocks {
  size_t first, count;
  const uint8_t* codes;
  const float* scales;
};

// Adds the products of some blocks to the sums of `rows` rows, up to 16, from `row` on. It multiplies 16: values have
// room for them, and nobody reads the products of those that do not exist.
template <bool Split>
void add_blocks(const Int4Matrix& m, const Int4Input& input, const Blocks& some, size_t row, size_t rows, Ahead& ahead,
                float* sums) {
  const size_t blocks = m.blocks(), width = blocks * m.block;
  alignas(64) Avx512::Ints products[kTogether][Split ? 2 : 1][kAtOnce];
  for (size_t i = 0; i < some.count; ++i) {
    const size_t at = row * width + (some.first + i) * m.block;
    ahead.step();
    multiply_block<Split>(input, some.codes + i * m.block * kLanes, m.block, at, width, products[i]);
  }
  for (size_t r = 0; r < rows; ++r) {
    const float* of_row = input.scales + (row + r) * blocks + some.first;
    Avx512::Floats total = Avx512::load_floats(sums + r * kLanes);
    for (size_t i = 0; i < some.count; ++i) {
      Avx512::Ints product = products[i][0][r];
      if constexpr (Split) product = Avx512::join(product, products[i][1][r]);
      const Avx512::Floats whole = Avx512::mul(Avx512::to_float(product), Avx512::broadcast(of_row[i]));
      total = Avx512::mul_add(whole, Avx512::load_floats(some.scales + i * kLanes), total);
    }
    Avx512::store(sums + r * kLanes, total);
  }
}

// Scales and zero points of a tile's blocks. A zero point fills every byte of its lane.
struct Scale {
  float* scales;
  uint8_t* zeros;
};

// Multiplies up to kMost rows from `row` on with one tile.
template <bool Split>
void multiply_tile(const Int4Matrix& m, const Int4Input& input, float* out, size_t tile, size_t row, size_t rows,
                   const Scale& scale) {
  const size_t blocks = m.blocks(), pieces = m.block / kPiece;
  const size_t begin = tile * kLanes, outputs = m.n - begin < kLanes ? m.n - begin : kLanes;
  alignas(64) float sums[kMost * kLanes];
  alignas(64) uint8_t codes[kTogether * 128 * kLanes];
  std::memset(sums, 0, rows * kLanes * sizeof *sums);
  Ahead ahead = next_tile(m, begin + kLanes, kLanes, blocks * ((rows + kAtOnce - 1) / kAtOnce));
  for (size_t first = 0; first < blocks; first += kTogether) {
    const size_t count = blocks - first < kTogether ? blocks - first : kTogether;
    const auto put = [&](size_t piece, const Avx512::Ints* unpacked) {
      const Avx512::Ints zero = Avx512::load(scale.zeros + piece / pieces * sizeof zero);
      uint8_t* to = codes + (piece - first * pieces) * kPiece * kLanes;
      for (size_t i = 0; i < 8; ++i) Avx512::store(to + i * sizeof zero, _mm512_sub_epi8(unpacked[i], zero));
    };
    unpack_pieces<Avx512>(m, begin, outputs, first * pieces, (first + count) * pieces, put);
    amx::written(codes);
    const Blocks some = {first, count, codes, scale.scales + first * kLanes};
    for (size_t r = 0; r < rows; r += kAtOnce) {
      add_blocks<Split>(m, input, some, row + r, rows - r < kAtOnce ? rows - r : kAtOnce, ahead, sums + r * kLanes);
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    std::memcpy(out + (row + r) * m.n + begin, sums + r * kLanes, outputs * sizeof(float));
  }
}

template <bool Split>
void multiply_many(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch) {
  const Scale of_tile = {reinterpret_cast<float*>(scratch), scratch + m.blocks() * sizeof(Avx512::Floats)};
  for (size_t tile = first; tile < last; ++tile) {
    const size_t begin = tile * kLanes, outputs = m.n - begin < kLanes ? m.n - begin : kLanes;
    read_scales<Avx512>(m, begin, outputs, [&](size_t block, auto scale, auto zero) {
      const __m512i lowest = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
      Avx512::store(of_tile.scales + block * kLanes, scale);
      Avx512::store(of_tile.zeros + block * sizeof zero, _mm512_shuffle_epi8(zero, lowest));
    });
    for (size_t row = 0; row < input.rows; row += kMost) {
      const size_t rows = input.rows - row < kMost ? input.rows - row : kMost;
      multiply_tile<Split>(m, input, out, tile, row, rows, of_tile);
    }
  }
}

void multiply_some(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch) {
  if (input.rows < kMany) return multiply<Avx512>(m, input, out, first, last, scratch);
  use_tiles(m.block, input.rows);
  (input.low != nullptr ? multiply_many<true> : multiply_many<false>)(m, input, out, first, last, scratch);
  _tile_release();
}

}  // namespace

extern const Int4Kernel kInt4Amx = {"amx", kLanes, Avx512::kAcross, quantize<Avx512>, multiply_some};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
