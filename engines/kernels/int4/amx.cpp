// The int4 kernel in AMX: multiplies 16 outputs by up to 16 rows at once. The weights are unpacked in storage order,
// without a transpose. Small batches use the AVX-512 code.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("prfchw,avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,amx-tile,amx-int8")

#include "kernels/amx.h"
#include "kernels/int4/avx512.h"
#include "kernels/int4/quantize_amx.h"

namespace blip2rt {
namespace {

constexpr size_t kTileSize = amx::kTileRows;  // outputs, and at most rows, per tile
constexpr size_t kMinTileRows = 5;            // from this many rows on, tiles are faster
constexpr size_t kMaxRows = 272;              // rows whose sums are kept while 16 outputs are multiplied
constexpr size_t kCacheLineBytes = 64;
constexpr size_t kPipelineDistance = 2;  // blocks between stages: stored values cannot be loaded at once
constexpr size_t kProductRing = 4;       // blocks of products waiting to be scaled
constexpr size_t kCodeRing = 8;          // blocks of unpacked codes kept for a single column of rows
constexpr size_t kMaxCodeRing = 64;
constexpr size_t kUnpackBatch = 12 * 64;  // weights of an output unpacked per batch when several columns read them
constexpr size_t kMaxScaleBlocks = 48;    // blocks whose scales are prepared together
static_assert(Int4Input::kQuantizeRows == kTileSize, "a column of rows is quantized at once");
static_assert(kPipelineDistance + 2 < kCodeRing && kPipelineDistance < kProductRing,
              "what is needed is not overwritten");
static_assert(kUnpackBatch / 32 <= kMaxScaleBlocks && kMaxScaleBlocks < kMaxCodeRing, "there is room for all blocks");

// Two streams of memory are faster than one on Xeons with AMX, and slower on other processors.
struct FewRowsVectors : Avx512 {
  static constexpr size_t kStreams = 2;
};

bool uses_tiles(const Int4Matrix& m, const Int4Input& input) { return input.rows >= kMinTileRows && m.n >= kTileSize; }

// The number of rows in a column: rows that are multiplied together.
size_t column_rows(const Int4Input& input) { return input.rows <= kTileSize / 2 ? kTileSize / 2 : kTileSize; }

// Tile numbers must be literals. Tile 0 sums the products of the high values, tile 1 those of the low values; tile 2
// holds high values, 3 low values, 4 codes. A block of 32 fills half a tile.
void configure_tiles(size_t block, size_t column) {
  const size_t depth = block < amx::kTileBytes ? block : amx::kTileBytes;
  amx::TileConfig config;
  config.set({0, 1}, kTileSize, column * sizeof(int32_t));
  config.set({2, 3}, depth / sizeof(int32_t), column * sizeof(int32_t));
  config.set({4}, kTileSize, depth);
  config.load();
}

// The weights being multiplied: blocks of 16 outputs. `unpacked` receives codes minus zero points, with the even
// weights of a tile's depth before the odd ones. scales, zeros: (16, kMaxScaleBlocks); a zero point fills all four
// bytes.
struct Weights {
  const uint8_t* codes;
  size_t stride, count;
  const float* scales;
  const uint32_t* zeros;
  uint8_t* unpacked;
  size_t ring;  // capacity of `unpacked` in blocks
  // The next outputs, prefetched meanwhile as four streams.
  const uint8_t* next;
  size_t stream_distance;
};

// A column of rows. values (blocks, depth / 4, column, 4), scales (blocks, column).
struct Column {
  const int8_t *values, *low;
  const float* scales;
};

// Calls work(0), work(1), ... with compile-time indices, so that the arrays they index stay in registers.
template <class Work, size_t... Index>
BLIP2RT_INLINE void unroll(std::index_sequence<Index...>, const Work& work) {
  (work(std::integral_constant<size_t, Index>()), ...);
}

// Unpacks codes and subtracts a zero point: for 32 bytes, all low halves before all high halves; for 16 bytes, twice
// that.
BLIP2RT_INLINE Avx512::Ints unpack(Avx512::Ints both, Avx512::Ints shifts, uint32_t zero) {
  const Avx512::Ints codes = _mm512_and_si512(_mm512_srlv_epi16(both, shifts), _mm512_set1_epi8(15));
  return _mm512_sub_epi8(codes, _mm512_set1_epi32(static_cast<int>(zero)));
}

// Unpacks a block of 16 outputs and prefetches an equal share of the next outputs, one cache line now and then.
template <size_t Block>
BLIP2RT_INLINE void unpack_block(const Weights& w, size_t block) {
  constexpr size_t kOutputs =
      Block < 128 ? 2 * kCacheLineBytes / Block : 1;  // outputs whose codes of a block fill a cache line
  uint8_t* to = w.unpacked + (block & (w.ring - 1)) * kTileSize * Block;
  const uint8_t *from = w.codes + block * Block / 2, *next = w.next + block * kTileSize * Block / 8;
  const __m256i four = _mm256_set1_epi16(4);
  const Avx512::Ints by_halves = _mm512_inserti64x4(_mm512_setzero_si512(), four, 1);
  const Avx512::Ints by_quarters = _mm512_inserti64x2(_mm512_setzero_si512(), _mm256_castsi256_si128(four), 1);
  unroll(std::make_index_sequence<kTileSize>(), [&](auto i) {
    const uint32_t zero = w.zeros[i * kMaxScaleBlocks + block];
    const uint8_t* of_output = from + i * w.stride;
    if constexpr (i % kOutputs == 0) {
      __builtin_prefetch(next + i / kOutputs % 4 * w.stream_distance + i / kOutputs / 4 * kCacheLineBytes);
    }
    if constexpr (Block == 32) {
      const __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i*>(of_output));
      const Avx512::Ints codes = unpack(_mm512_broadcast_i32x4(both), by_quarters, zero);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * Block), _mm512_castsi512_si256(codes));
    } else {
      for (size_t part = 0; part < Block / 64; ++part) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(of_output + part * 32));
        Avx512::store(to + (part * kTileSize + i) * 64, unpack(_mm512_broadcast_i64x4(both), by_halves, zero));
      }
    }
  });
}

// The integer products of a block (16 outputs, W rows), for the high and the low values.
template <size_t W, bool Split>
struct alignas(64) Products {
  int32_t of[Split ? 2 : 1][kTileSize * W];
};

// Loads one part of a block: codes, and a column's values.
template <size_t W, bool Split, size_t Block>
BLIP2RT_INLINE void load_tiles(const Weights& w, const Column& x, size_t block, size_t k) {
  const uint8_t* codes = w.unpacked + ((block & (w.ring - 1)) * Block + k) * kTileSize;
  const size_t value = (block * Block + k) * W;
  amx::compiler_barrier(codes);
  _tile_loadd(4, codes, Block < amx::kTileBytes ? Block : amx::kTileBytes);
  _tile_loadd(2, x.values + value, W * sizeof(int32_t));
  if constexpr (Split) _tile_loadd(3, x.low + value, W * sizeof(int32_t));
}

// Multiplies the loaded tiles while the next block's tiles are loaded, which hides the memory latency.
template <size_t W, bool Split, size_t Block>
BLIP2RT_INLINE void multiply_block(const Weights& w, const Column& x, size_t block) {
  _tile_zero(0);
  if constexpr (Split) _tile_zero(1);
  for (size_t k = 0; k < Block; k += amx::kTileBytes) {
    _tile_dpbssd(0, 4, 2);
    if constexpr (Split) _tile_dpbssd(1, 4, 3);
    const bool last = k + amx::kTileBytes >= Block;
    load_tiles<W, Split, Block>(w, x, last ? block + 1 : block, last ? 0 : k + amx::kTileBytes);
  }
}

template <size_t W, bool Split>
BLIP2RT_INLINE void store_products(Products<W, Split>& products) {
  _tile_stored(0, products.of[0], W * sizeof(int32_t));
  if constexpr (Split) _tile_stored(1, products.of[1], W * sizeof(int32_t));
}

// Returns the scales of output `index`, or of two outputs of 8 rows, for each lane of a register of products.
template <size_t W>
BLIP2RT_INLINE Avx512::Floats output_scales(const float* scales, size_t index) {
  if constexpr (W == kTileSize) return Avx512::broadcast(scales[index * kMaxScaleBlocks]);
  const __m128 next = _mm_load_ss(scales + (2 * index + 1) * kMaxScaleBlocks);
  return _mm512_mask_broadcastss_ps(Avx512::broadcast(scales[2 * index * kMaxScaleBlocks]), 0xff00, next);
}

template <size_t W>
BLIP2RT_INLINE Avx512::Floats row_scales(const float* scales) {
  if constexpr (W == kTileSize) return Avx512::load_floats(scales);
  return _mm512_castpd_ps(_mm512_broadcast_f64x4(_mm256_castps_pd(_mm256_loadu_ps(scales))));
}

// Scales a block's products and adds them to the sums (16 outputs, W rows). With 8 rows a register holds two outputs.
template <size_t W, bool Split>
BLIP2RT_INLINE void scale_block(const Weights& w, const Column& x, size_t block, const Products<W, Split>& products,
                                Avx512::Floats (&sums)[W]) {
  amx::compiler_barrier(&products);
  const Avx512::Floats of_rows = row_scales<W>(x.scales + block * W);
  unroll(std::make_index_sequence<W>(), [&](auto i) {
    Avx512::Ints product = Avx512::load(products.of[0] + i * kTileSize);
    if constexpr (Split) product = Avx512::join(product, Avx512::load(products.of[1] + i * kTileSize));
    const Avx512::Floats whole = Avx512::mul(Avx512::to_float(product), of_rows);
    sums[i] = Avx512::mul_add(whole, output_scales<W>(w.scales + block, i), sums[i]);
  });
}

// Multiplies some blocks by a column of rows and adds the results to the column's sums. The stages (unpack, load,
// multiply, scale) form a pipeline. Unpack: the codes are not unpacked yet.
template <size_t W, bool Split, size_t Block, bool Unpack>
void add_blocks(const Weights& w, const Column& x, float* sums) {
  Products<W, Split> ring[kProductRing];
  Avx512::Floats total[W];
  unroll(std::make_index_sequence<W>(), [&](auto i) { total[i] = Avx512::load_floats(sums + i * kTileSize); });
  constexpr size_t kLoad = Unpack ? kPipelineDistance : 0, kStore = kLoad + 2, kScale = kStore + kPipelineDistance;
  for (size_t i = 0; i < w.count + kScale; ++i) {
    if (i >= kStore && i < w.count + kStore) store_products<W, Split>(ring[(i - kStore) % kProductRing]);
    if (i > kLoad && i <= w.count + kLoad) multiply_block<W, Split, Block>(w, x, i - kLoad - 1);
    if (i == kLoad) load_tiles<W, Split, Block>(w, x, 0, 0);
    if (Unpack && i < w.count) unpack_block<Block>(w, i);
    if (i >= kScale) scale_block<W, Split>(w, x, i - kScale, ring[(i - kScale) % kProductRing], total);
  }
  unroll(std::make_index_sequence<W>(), [&](auto i) { Avx512::store(sums + i * kTileSize, total[i]); });
}

// Reads the scales and zero points of `count` blocks of 16 outputs.
void read_group_scales(const Int4Matrix& m, size_t begin, size_t first, size_t count, float* scales, uint32_t* zeros) {
  const size_t blocks = m.blocks(), zero_bytes = (blocks + 1) / 2;
  const Avx512::Ints lowest = _mm512_set4_epi32(0x0c0c0c0c, 0x08080808, 0x04040404, 0);
  for (size_t i = 0; i < kTileSize; ++i) {
    for (size_t at = 0; at < count; at += Avx512::kLanes) {
      const size_t some = count - at < Avx512::kLanes ? count - at : Avx512::kLanes;
      alignas(32) uint16_t halves[Avx512::kLanes];
      uint8_t nibbles[Avx512::kLanes / 2];
      const auto all = static_cast<__mmask16>((1u << some) - 1),
                 pairs = static_cast<__mmask16>((1u << (some + 1) / 2) - 1);
      const uint16_t* half = m.scales + (begin + i) * blocks + first + at;
      const uint8_t* zero = m.zero_points + (begin + i) * zero_bytes + (first + at) / 2;
      _mm256_store_si256(reinterpret_cast<__m256i*>(halves), _mm256_maskz_loadu_epi16(all, half));
      _mm_storel_epi64(reinterpret_cast<__m128i*>(nibbles), _mm_maskz_loadu_epi8(pairs, zero));
      Avx512::store(scales + i * kMaxScaleBlocks + at, Avx512::load_halves(halves));
      const Avx512::Ints codes = _mm512_cvtps_epi32(Avx512::load_nibbles(nibbles));
      Avx512::store(reinterpret_cast<uint8_t*>(zeros + i * kMaxScaleBlocks + at), _mm512_shuffle_epi8(codes, lowest));
    }
  }
}

// Writes sums (16 outputs, W rows) to rows of `out` from output `begin` on, except the first `skip` outputs, which the
// previous group has written.
template <size_t W>
void write_sums(const Int4Matrix& m, const float* sums, size_t rows, size_t skip, float* out) {
  const auto mask = static_cast<__mmask16>(0xffffu << skip);
  for (size_t four = 0; four < W && four < rows; four += 4) {
    Avx512::Ints turned[4];
    Avx512::transpose(reinterpret_cast<const uint8_t*>(sums + four), W * sizeof(float), turned);
    for (size_t r = 0; r < 4 && four + r < rows; ++r) {
      _mm512_mask_storeu_ps(out + (four + r) * m.n, mask, _mm512_castsi512_ps(turned[r]));
    }
  }
}

// Multiplies up to kMaxRows rows from `row` on by 16 outputs from `begin` on.
template <size_t W, bool Split, size_t Block>
void multiply_group(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, size_t skip, size_t row,
                    uint8_t* unpacked) {
  const size_t blocks = m.blocks(), stride = blocks * Block / 2;
  const size_t rows = input.rows - row < kMaxRows ? input.rows - row : kMaxRows, columns = (rows + W - 1) / W;
  // A single column reads its codes once; several columns find them in the first-level cache.
  const size_t most = columns == 1 ? kMaxScaleBlocks : kUnpackBatch / Block, chunks = (blocks + most - 1) / most;
  const size_t chunk = (blocks + chunks * 2 - 1) / (chunks * 2) * 2;  // two zero points share a byte
  alignas(64) float sums[kMaxRows * kTileSize];
  alignas(64) float scales[kTileSize * kMaxScaleBlocks];
  alignas(64) uint32_t zeros[kTileSize * kMaxScaleBlocks];
  std::memset(sums, 0, columns * W * kTileSize * sizeof *sums);
  // Prefetches the next outputs meanwhile as four streams: a single stream stalls at every page boundary.
  const size_t next = begin + 2 * kTileSize <= m.n ? begin + kTileSize : m.n - kTileSize;
  for (size_t first = 0; first < blocks; first += chunk) {
    const size_t count = blocks - first < chunk ? blocks - first : chunk;
    read_group_scales(m, begin, first, count, scales, zeros);
    const Weights w = {m.codes + begin * stride + first * Block / 2,
                       stride,
                       count,
                       scales,
                       zeros,
                       unpacked,
                       columns == 1 ? kCodeRing : kMaxCodeRing,
                       m.codes + next * stride + first * kTileSize * Block / 8,
                       stride * kTileSize / 4};
    for (size_t i = 0; i < columns; ++i) {
      const size_t at = (row + i * W) * blocks + first * W, value = at * Block;
      if (first + count == blocks) {  // what write_sums will write
        for (size_t r = i * W; r < rows && r < (i + 1) * W; ++r) __builtin_prefetch(out + (row + r) * m.n + begin, 1);
      }
      const Column x = {input.values + value, Split ? input.low + value : nullptr, input.scales + at};
      (i == 0 ? add_blocks<W, Split, Block, true> : add_blocks<W, Split, Block, false>)(w, x, sums + i * W * kTileSize);
    }
  }
  for (size_t i = 0; i < columns; ++i) {
    const size_t left = rows - i * W;
    write_sums<W>(m, sums + i * W * kTileSize, left < W ? left : W, skip, out + (row + i * W) * m.n + begin);
  }
}

template <size_t W, bool Split, size_t Block>
void multiply_groups(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                     uint8_t* scratch) {
  for (size_t row = 0; row < input.rows; row += kMaxRows) {
    for (size_t group = first; group < last; ++group) {
      // The last group overlaps the one before it.
      const size_t first_output = group * kTileSize,
                   begin = first_output + kTileSize <= m.n ? first_output : m.n - kTileSize;
      multiply_group<W, Split, Block>(m, input, out, begin, first_output - begin, row, scratch);
    }
  }
}

template <size_t W, bool Split>
void multiply_columns(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                      uint8_t* scratch) {
  switch (m.block) {
    case 32: return multiply_groups<W, Split, 32>(m, input, out, first, last, scratch);
    case 64: return multiply_groups<W, Split, 64>(m, input, out, first, last, scratch);
    default: return multiply_groups<W, Split, 128>(m, input, out, first, last, scratch);
  }
}

void multiply_amx(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                  uint8_t* scratch) {
  if (!uses_tiles(m, input)) return multiply<FewRowsVectors>(m, input, out, first, last, scratch);
  const bool split = input.low != nullptr, narrow = column_rows(input) < kTileSize;
  configure_tiles(m.block, column_rows(input));
  (narrow  ? split ? multiply_columns<kTileSize / 2, true> : multiply_columns<kTileSize / 2, false>
   : split ? multiply_columns<kTileSize, true>
           : multiply_columns<kTileSize, false>)(m, input, out, first, last, scratch);
  _tile_release();
}

void quantize_amx(const float* x, size_t first, size_t rows, const Int4Matrix& m, const Int4Input& input) {
  if (!uses_tiles(m, input)) return quantize<FewRowsVectors>(x, first, rows, m, input);
  const bool split = input.low != nullptr;
  const auto quantize_column = m.block == 32 ? split ? amx::quantize_column<true, 32> : amx::quantize_column<false, 32>
                               : split       ? amx::quantize_column<true, 64>
                                             : amx::quantize_column<false, 64>;
  quantize_column(x, first, rows, column_rows(input), m, input);
}

}  // namespace

extern const Int4Kernel kInt4Amx = {"amx", kTileSize, Avx512::kTilesAtOnce, quantize_amx, multiply_amx};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
