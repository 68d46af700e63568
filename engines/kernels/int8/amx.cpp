// The int8 kernel in AMX: multiplies 32 outputs by 32 rows at once, reading the weights where they are in the file.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")

#include "kernels/amx.h"
#include "kernels/int8/avx512.h"

namespace blip2rt {
namespace {

constexpr size_t kTileSize = amx::kTileRows;    // outputs and rows of a tile of products
constexpr size_t kTileDepth = amx::kTileBytes;  // elements of K per tile
constexpr size_t kTransposeRows = 4;            // rows transposed at once
constexpr size_t kPairOutputs = 2 * kTileSize;  // outputs multiplied at once
constexpr size_t kDepthPart =
    11 * kTileDepth;              // elements of K that stay in the first-level cache, for 32 outputs and all rows
constexpr size_t kMaxRows = 288;  // rows whose products are kept over all of K
constexpr size_t kTileProducts = kTileSize * kTileSize;
static_assert(Int8Kernel::kRows == kTileSize, "a tile of rows is quantized at once");

// Values are stored in blocks of 16 rows, and a block in tiles of 64 elements of K, with 4 values of each row next to
// those of the other rows.
size_t block_size(const Int8Input& input) { return input.width * kTileSize; }

void configure_tiles() {
  amx::TileConfig config;
  config.set({0, 1, 2, 3, 4, 5, 6, 7}, kTileSize, kTileDepth);
  config.load();
}

// The codes of 32 outputs for a part of K.
struct Weights {
  const int8_t* codes;
  size_t stride, tiles;
};

// Returns the codes in place, or a zero-padded copy if there are fewer outputs or K ends within a tile.
Weights load_weights(const Int8Matrix& m, size_t begin, size_t k, int8_t* copy) {
  const size_t depth = m.k - k < kDepthPart ? m.k - k : kDepthPart,
               outputs = m.n - begin < kPairOutputs ? m.n - begin : kPairOutputs;
  const size_t tiles = (depth + kTileDepth - 1) / kTileDepth;
  const int8_t* codes = m.codes + begin * m.k + k;
  if (outputs == kPairOutputs && depth == tiles * kTileDepth) return {codes, m.k, tiles};
  std::memset(copy, 0, kPairOutputs * kDepthPart);
  for (size_t i = 0; i < outputs; ++i) std::memcpy(copy + i * kDepthPart, codes + i * m.k, depth);
  amx::compiler_barrier(copy);
  return {copy, kDepthPart, tiles};
}

// Prefetches the same part of K of the next 32 outputs in `steps` steps.
Prefetcher prefetch_next_pair(const Int8Matrix& m, size_t begin, size_t k, const Weights& weights, size_t steps) {
  const size_t left = begin + kPairOutputs < m.n ? m.n - begin - kPairOutputs : 0;
  return {m.codes + (m.n - left) * m.k + k, left < kPairOutputs ? left : kPairOutputs, m.k, weights.tiles * kTileDepth,
          steps};
}

// Adds to `products`, or overwrites it. Tile numbers must be literals: tiles 0 and 1 sum the upper 16 outputs for one
// block of rows and the next, 2 and 3 the lower 16; 4 and 5 hold the outputs' codes, 6 and 7 the blocks' values.
template <bool Both>
void multiply_pair(const Weights& weights, const uint8_t* values, size_t block, bool add, Prefetcher& prefetcher,
                   int32_t* products) {
  int32_t* of_next = products + 2 * kTileProducts;
  if (add) {
    _tile_loadd(0, products, kTileDepth);
    _tile_loadd(2, products + kTileProducts, kTileDepth);
    if constexpr (Both) _tile_loadd(1, of_next, kTileDepth);
    if constexpr (Both) _tile_loadd(3, of_next + kTileProducts, kTileDepth);
  } else {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (Both) _tile_zero(1);
    if constexpr (Both) _tile_zero(3);
  }
  for (size_t tile = 0; tile < weights.tiles; ++tile) {
    const int8_t* codes = weights.codes + tile * kTileDepth;
    const uint8_t* of_rows = values + tile * kTileDepth * kTileSize;
    prefetcher.step();
    _tile_loadd(6, of_rows, kTileDepth);
    _tile_loadd(4, codes, weights.stride);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(5, codes + kTileSize * weights.stride, weights.stride);
    _tile_dpbsud(2, 5, 6);
    if constexpr (Both) {
      _tile_loadd(7, of_rows + block, kTileDepth);
      _tile_dpbsud(1, 4, 7);
      _tile_dpbsud(3, 5, 7);
    }
  }
  _tile_stored(0, products, kTileDepth);
  _tile_stored(2, products + kTileProducts, kTileDepth);
  if constexpr (Both) _tile_stored(1, of_next, kTileDepth);
  if constexpr (Both) _tile_stored(3, of_next + kTileProducts, kTileDepth);
}

// Adds the codes of each output to `sums`.
void sum_codes(const Weights& weights, int32_t* sums) {
  for (size_t i = 0; i < kPairOutputs; ++i) {
    Avx512::Ints sum = {};
    for (size_t tile = 0; tile < weights.tiles; ++tile) {
      const Avx512::Ints codes = _mm512_loadu_si512(weights.codes + i * weights.stride + tile * kTileDepth);
      sum = Avx512::dot(sum, Avx512::ones(), codes);
    }
    sums[i] += _mm512_reduce_add_epi32(sum);
  }
}

// Scales integer products (outputs, rows) and writes them as 32 outputs of `rows` rows, at most 16, from `first` on.
void write_outputs(const Int8Matrix& m, const Int8Input& input, size_t begin, size_t first, size_t rows,
                   const int32_t* sums, const int32_t* products, float* out) {
  const size_t outputs = m.n - begin < kPairOutputs ? m.n - begin : kPairOutputs;
  alignas(64) float scales[kPairOutputs] = {}, bias[kPairOutputs] = {};
  std::memcpy(scales, m.scales + begin, outputs * sizeof(float));
  if (m.bias != nullptr) std::memcpy(bias, m.bias + begin, outputs * sizeof(float));
  for (size_t half = 0; half < kPairOutputs && half < outputs; half += kTileSize) {
    const Avx512::Ints of_outputs = _mm512_load_si512(sums + half);
    const __mmask16 there = Avx512::mask(outputs - half);
    const uint8_t* tile = reinterpret_cast<const uint8_t*>(products + half / kTileSize * kTileProducts);
    for (size_t four = 0; four < rows; four += kTransposeRows) {
      Avx512::Ints of_rows[kTransposeRows];
      Avx512::transpose(tile + four * sizeof(int32_t), kTileDepth, of_rows);
      for (size_t r = 0; r < kTransposeRows && four + r < rows; ++r) {
        const size_t at = first + four + r;
        const Avx512::Ints product = Avx512::minus_product(of_rows[r], Avx512::broadcast(input.zeros[at]), of_outputs);
        _mm512_mask_storeu_ps(out + at * m.n + begin + half, there,
                              Avx512::affine(product, input.scales[at], scales + half, bias + half));
      }
    }
  }
}

// The scratch memory of 32 outputs.
struct alignas(64) Scratch {
  int32_t products[kMaxRows / kTileSize * 2 * kTileProducts], sums[kPairOutputs];
  int8_t copy[kPairOutputs * kDepthPart];
};

void multiply(const Int8Matrix& m, const Int8Input& input, float* out, size_t first, size_t last, uint8_t* scratch) {
  configure_tiles();
  for (size_t row = 0; row < input.rows; row += kMaxRows) {
    const size_t rows = input.rows - row < kMaxRows ? input.rows - row : kMaxRows,
                 blocks = (rows + kTileSize - 1) / kTileSize;
    for (size_t k = 0; k < m.k; k += kDepthPart) {
      for (size_t pair = first; pair < last; ++pair) {
        Scratch& own = reinterpret_cast<Scratch*>(scratch)[pair - first];
        const size_t begin = pair * kPairOutputs;
        const Weights weights = load_weights(m, begin, k, own.copy);
        if (row == 0 && k == 0) std::memset(own.sums, 0, sizeof own.sums);
        if (row == 0) sum_codes(weights, own.sums);
        Prefetcher prefetcher = prefetch_next_pair(m, begin, k, weights, (blocks + 1) / 2 * weights.tiles);
        for (size_t block = 0; block < blocks; block += 2) {
          const uint8_t* values = input.values + row * input.width + block * block_size(input) + k * kTileSize;
          const auto multiply_blocks = block + 1 < blocks ? multiply_pair<true> : multiply_pair<false>;
          multiply_blocks(weights, values, block_size(input), k > 0, prefetcher,
                          own.products + block * 2 * kTileProducts);
        }
      }
    }
    for (size_t block = 0; block < blocks; ++block) {  // of all outputs, because neighbours share pages
      const size_t at = block * kTileSize, some = rows - at < kTileSize ? rows - at : kTileSize;
      for (size_t pair = first; pair < last; ++pair) {
        const Scratch& own = reinterpret_cast<Scratch*>(scratch)[pair - first];
        write_outputs(m, input, pair * kPairOutputs, row + at, some, own.sums, own.products + at * kPairOutputs, out);
      }
    }
  }
  _tile_release();
}

void quantize(const float* x, size_t first, size_t rows, size_t k, const Int8Input& input) {
  RowQuantization roundings[kTileSize];
  for (size_t i = 0; i < rows; ++i)
    roundings[i] = choose_quantization<Avx512>(x + (first + i) * k, first + i, k, input);
  alignas(64) uint8_t values[kTileSize][kTileDepth] = {};
  uint8_t* to = input.values + first * input.width;
  for (size_t at = 0; at < k; at += kTileDepth, to += kTileSize * kTileDepth) {
    const size_t some = k - at < kTileDepth ? k - at : kTileDepth;
    if (some < kTileDepth) std::memset(values, 0, sizeof values);
    for (size_t i = 0; i < rows; ++i) {
      Avx512::quantize(x + (first + i) * k + at, some, roundings[i].inverse, roundings[i].zero, values[i]);
    }
    for (size_t part = 0; part < kTileSize; part += kTransposeRows) {
      Avx512::Ints fours[kTransposeRows];
      Avx512::transpose(values[0] + part * kTransposeRows, kTileDepth, fours);
      for (size_t i = 0; i < kTransposeRows; ++i) Avx512::store(to + (part + i) * kTileDepth, fours[i]);
    }
  }
}

size_t pair_scratch_size(size_t) { return sizeof(Scratch); }

}  // namespace

extern const Int8Kernel kInt8Amx = {"amx",    kPairOutputs, kMaxOutputsPerCall / kPairOutputs, 1, pair_scratch_size,
                                    quantize, multiply};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
