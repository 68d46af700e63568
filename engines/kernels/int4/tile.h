// The int4 product in tiles, as templates over the vectors V of an instruction set, with kLanes outputs per vector.
// Include it after BLIP2RT_TARGET. Everything has internal linkage, because each including file compiles it for another
// processor.
#pragma once

#include <cstring>
#include <utility>

#include "kernels/int4/matmul.h"
#include "kernels/prefetch.h"

#define BLIP2RT_INLINE inline __attribute__((always_inline))

namespace blip2rt {
namespace {

constexpr size_t kPieceWeights = 32;                   // weights of an output unpacked together: 16 bytes
constexpr size_t kPieceRegisters = kPieceWeights / 4;  // registers of codes in a piece: four weights of each output

// The rows of activations multiplied at once by T tiles: as many as there are registers for their sums. 16-bit
// activations need two sums.
template <class V, bool Split, size_t T>
constexpr size_t kRowsAtOnce = (Split ? V::kRows16Bit : V::kRows8Bit) / (T > 1 ? V::kRowDivisor : 1);

// Returns whether `read` values from the start of an output, which has `own` of them, stay inside the matrix. A read
// beyond the output then hits the next ones.
bool stays_inside(const Int4Matrix& m, size_t output, size_t own, size_t read) {
  return output * own + read <= m.n * own;
}

// The scales, and scales times zero points, of tiles: (T, blocks, kLanes).
template <class V>
struct Scales {
  float *scale, *offset;
};

// Copies kLanes rows of 16 bytes. Repeats the last of `rows`, and zero-fills after `bytes`.
template <class V>
void copy_rows(const uint8_t* base, size_t stride, size_t rows, size_t bytes, uint8_t* to) {
  std::memset(to, 0, 16 * V::kLanes);
  for (size_t lane = 0; lane < V::kLanes; ++lane) {
    std::memcpy(to + 16 * lane, base + stride * (lane < rows ? lane : rows - 1), bytes);
  }
}

// Calls put(block, scales, zero points) for every block of a tile.
template <class V, class Put>
void read_scales(const Int4Matrix& m, size_t first, size_t rows, const Put& put) {
  const size_t blocks = m.blocks(), zero_bytes = (blocks + 1) / 2;
  const uint8_t* scales = reinterpret_cast<const uint8_t*>(m.scales + first * blocks);
  const uint8_t* zeros = m.zero_points + first * zero_bytes;
  const size_t read = (blocks + 7) / 8 * 8, bottom = first + V::kLanes - 1;  // 8 blocks at a time
  const bool may_overread = stays_inside(m, bottom, blocks, read) && stays_inside(m, bottom, zero_bytes, read / 2);
  alignas(64) uint8_t copy[16 * V::kLanes];
  for (size_t block = 0; block < blocks; block += 8) {
    const size_t count = blocks - block < 8 ? blocks - block : 8;
    for (size_t lane = V::kLanes; lane < 2 * V::kLanes; lane += 4) {  // the next tile's
      __builtin_prefetch(scales + 2 * (block + lane * blocks));
      __builtin_prefetch(zeros + block / 2 + lane * zero_bytes);
    }
    typename V::Ints pairs[4];
    alignas(64) uint32_t packed[V::kLanes];
    if (may_overread) {
      V::transpose(scales + 2 * block, 2 * blocks, pairs);
      for (size_t lane = 0; lane < V::kLanes; ++lane) {
        std::memcpy(&packed[lane], zeros + zero_bytes * lane + block / 2, sizeof packed[lane]);
      }
    } else {
      copy_rows<V>(scales + 2 * block, 2 * blocks, rows, 2 * count, copy);
      V::transpose(copy, 16, pairs);
      for (size_t lane = 0; lane < V::kLanes; ++lane) {
        packed[lane] = 0;
        std::memcpy(&packed[lane], zeros + zero_bytes * (lane < rows ? lane : rows - 1) + block / 2, (count + 1) / 2);
      }
    }
    typename V::Ints codes = V::load(packed);
    for (size_t i = 0; i < count; ++i) {
      put(block + i, V::half(i % 2 == 0 ? pairs[i / 2] : V::high_half(pairs[i / 2])), V::low_nibble_of_lane(codes));
      codes = V::next_nibble_of_lane(codes);
    }
  }
}

// The low half of codes for an even index, the high half for an odd one.
template <class V>
typename V::Ints nibbles(typename V::Ints packed, size_t index) {
  return index % 2 == 0 ? V::low_nibbles(packed) : V::high_nibbles(packed);
}

// The packed codes of T tiles, transposed and unpacked on the fly.
template <class V, size_t T>
struct PackedTiles {
  const uint8_t* codes;
  size_t stride;

  struct Piece {
    typename V::Ints packed[T][kPieceRegisters / 2];

    typename V::Ints group(size_t tile, size_t index) const { return nibbles<V>(packed[tile][index / 2], index); }
  };

  Piece piece(size_t index) const {
    Piece result;
    for (size_t t = 0; t < T; ++t) {
      V::transpose(codes + t * V::kLanes * stride + index * (kPieceWeights / 2), stride, result.packed[t]);
    }
    return result;
  }
};

// Calls put(index, four registers of packed codes) for pieces of a tile that has `outputs` outputs.
template <class V, class Put>
void transpose_pieces(const Int4Matrix& m, size_t begin, size_t outputs, size_t first, size_t last, const Put& put) {
  const size_t stride = m.blocks() * m.block / 2;
  alignas(64) uint8_t copy[16 * V::kLanes];
  typename V::Ints transposed[kPieceRegisters / 2];
  for (size_t piece = first; piece < last; ++piece) {
    const uint8_t* codes = m.codes + begin * stride + piece * (kPieceWeights / 2);
    if (outputs < V::kLanes) {  // do not read past the matrix
      copy_rows<V>(codes, stride, outputs, 16, copy);
      V::transpose(copy, 16, transposed);
    } else {
      V::transpose(codes, stride, transposed);
    }
    put(piece, transposed);
  }
}

// The transposed codes of T tiles, for many rows. The registers of the tiles are interleaved. Codes that stay packed
// fill less of the cache and take more instructions.
template <class V, size_t T>
struct TransposedTiles {
  static constexpr bool kUnpacked = !V::kUnpacksPairs;
  static constexpr size_t kBytes = sizeof(typename V::Ints), kStored = kPieceRegisters / (kUnpacked ? 1 : 2);
  uint8_t* codes;

  struct Piece {
    const uint8_t* codes;

    typename V::Ints group(size_t tile, size_t index) const {
      const typename V::Ints stored = V::load(codes + ((kUnpacked ? index : index / 2) * T + tile) * kBytes);
      return kUnpacked ? stored : nibbles<V>(stored, index);
    }
  };

  Piece piece(size_t index) const { return {codes + index * kStored * T * kBytes}; }

  void put(size_t tile, size_t piece, const typename V::Ints* packed) const {
    for (size_t i = 0; i < kStored; ++i) {
      V::store(codes + ((piece * kStored + i) * T + tile) * kBytes,
               kUnpacked ? nibbles<V>(packed[i / 2], i) : packed[i]);
    }
  }
};

// Prefetches `outputs` outputs from `begin` on in `steps` steps: they are too many streams for the hardware prefetcher.
Prefetcher prefetch_tile(const Int4Matrix& m, size_t begin, size_t outputs, size_t steps) {
  const size_t stride = m.blocks() * m.block / 2, left = begin < m.n ? m.n - begin : 0;
  return {m.codes + (m.n - left) * stride, left < outputs ? left : outputs, stride, stride, steps};
}

// Rows of activations in one plane (8 bits) or two (16 bits).
struct Planes {
  const int8_t *values, *low;
  size_t width;  // distance between rows
};

// Multiplies a piece of one tile by one row.
template <class V, class Piece, size_t... Index>
BLIP2RT_INLINE typename V::Ints dot_piece(typename V::Ints sum, const Piece& codes, const int8_t* values,
                                          std::index_sequence<Index...>) {
  typename V::Part part = V::begin_piece(sum);
  ((part = V::template dot_four<Index>(part, codes.group(0, Index), values)), ...);
  return V::end_piece(sum, part);
}

// Multiplies four weights of each output of T tiles by R rows. A row's values are loaded once for all tiles.
template <class V, size_t Index, size_t R, size_t T, class Piece>
BLIP2RT_INLINE void dot_groups(const Piece& codes, const int8_t* values, size_t width, typename V::Part (*sums)[R]) {
  for (size_t r = 0; r < R; ++r) {
    for (size_t t = 0; t < T; ++t) {
      sums[t][r] = V::template dot_four<Index>(sums[t][r], codes.group(t, Index), values + r * width);
    }
  }
}

// Begins and ends a piece of T tiles and R rows, for which some V use separate sums.
template <class V, size_t R, size_t T>
BLIP2RT_INLINE void begin_pieces(const typename V::Ints (*sums)[R], typename V::Part (*parts)[R]) {
  for (size_t t = 0; t < T; ++t) {
    for (size_t r = 0; r < R; ++r) parts[t][r] = V::begin_piece(sums[t][r]);
  }
}

template <class V, size_t R, size_t T>
BLIP2RT_INLINE void end_pieces(const typename V::Part (*parts)[R], typename V::Ints (*sums)[R]) {
  for (size_t t = 0; t < T; ++t) {
    for (size_t r = 0; r < R; ++r) sums[t][r] = V::end_piece(sums[t][r], parts[t][r]);
  }
}

// Multiplies a piece of T tiles by R rows.
template <class V, bool Split, size_t R, size_t T, class Piece, size_t... Index>
BLIP2RT_INLINE void add_piece(const Piece& codes, const Planes& x, typename V::Ints (*products)[R],
                              typename V::Ints (*lows)[R], std::index_sequence<Index...> fours) {
  if constexpr (T == 1) {  // the codes stay in registers
    for (size_t r = 0; r < R; ++r) {
      products[0][r] = dot_piece<V>(products[0][r], codes, x.values + r * x.width, fours);
      if constexpr (Split) lows[0][r] = dot_piece<V>(lows[0][r], codes, x.low + r * x.width, fours);
    }
  } else {
    typename V::Part parts[T][R], low_parts[T][R];
    begin_pieces<V, R, T>(products, parts);
    if constexpr (Split) {
      begin_pieces<V, R, T>(lows, low_parts);
      (..., (dot_groups<V, Index, R, T>(codes, x.values, x.width, parts),
             dot_groups<V, Index, R, T>(codes, x.low, x.width, low_parts)));
      end_pieces<V, R, T>(low_parts, lows);
    } else {
      (..., dot_groups<V, Index, R, T>(codes, x.values, x.width, parts));
    }
    end_pieces<V, R, T>(parts, products);
  }
}

// Multiplies R rows from `row` on by T tiles. sums (R, T, kLanes).
template <class V, bool Split, size_t R, size_t T, class Codes>
void multiply_rows(const Int4Matrix& m, const Int4Input& input, const Codes& codes, const Scales<V>& scales, size_t row,
                   Prefetcher& prefetcher, float* sums) {
  const size_t blocks = m.blocks(), width = blocks * m.block * V::kValueCopies, pieces = m.block / kPieceWeights;
  typename V::Floats total[T][R];
  for (auto& of_tile : total) {
    for (auto& sum : of_tile) sum = typename V::Floats{};
  }
  for (size_t block = 0; block < blocks; ++block) {
    typename V::Ints products[T][R], lows[T][R];  // set by vectors: `= {}` may become a slow string instruction
    for (size_t t = 0; t < T; ++t) {
      for (size_t r = 0; r < R; ++r) products[t][r] = lows[t][r] = typename V::Ints{};
    }
    for (size_t piece = block * pieces; piece < (block + 1) * pieces; ++piece) {
      prefetcher.step();
      const size_t at = row * width + piece * kPieceWeights * V::kValueCopies;
      const Planes x = {input.values + at, Split ? input.low + at : nullptr, width};
      add_piece<V, Split, R, T>(codes.piece(piece), x, products, lows, std::make_index_sequence<kPieceRegisters>());
    }
    for (size_t t = 0; t < T; ++t) {
      const typename V::Floats scale = V::load_floats(scales.scale + (t * blocks + block) * V::kLanes);
      const typename V::Floats offset = V::load_floats(scales.offset + (t * blocks + block) * V::kLanes);
      for (size_t r = 0; r < R; ++r) {
        const size_t at = (row + r) * blocks + block;
        if constexpr (Split) products[t][r] = V::join(products[t][r], lows[t][r]);
        const typename V::Floats whole = V::mul(V::to_float(products[t][r]), V::broadcast(input.scales[at]));
        total[t][r] = V::mul_add(whole, scale, V::mul_sub(offset, V::broadcast(input.sums[at]), total[t][r]));
      }
    }
  }
  for (size_t r = 0; r < R; ++r) {
    for (size_t t = 0; t < T; ++t) V::store(sums + (r * T + t) * V::kLanes, total[t][r]);
  }
}

template <class V, bool Split, size_t T, class Codes, size_t R = 1>
void multiply_up_to(size_t rows, const Int4Matrix& m, const Int4Input& input, const Codes& codes,
                    const Scales<V>& scales, size_t row, Prefetcher& prefetcher, float* sums) {
  if constexpr (R < kRowsAtOnce<V, Split, T>) {
    if (rows > R)
      return multiply_up_to<V, Split, T, Codes, R + 1>(rows, m, input, codes, scales, row, prefetcher, sums);
  }
  multiply_rows<V, Split, R, T>(m, input, codes, scales, row, prefetcher, sums);
}

// Multiplies all rows by T tiles, the first of which begins with output `begin`.
template <class V, bool Split, size_t T>
void multiply_tile_pair(const Int4Matrix& m, const Int4Input& input, float* out, size_t begin, uint8_t* scratch) {
  const size_t blocks = m.blocks(), stride = blocks * m.block / 2, numbers = T * blocks * V::kLanes;
  const size_t outputs = m.n - begin < T * V::kLanes ? m.n - begin : T * V::kLanes;
  const size_t pieces = blocks * m.block / kPieceWeights;
  const Scales<V> scales = {reinterpret_cast<float*>(scratch), reinterpret_cast<float*>(scratch) + numbers};
  const PackedTiles<V, T> packed = {m.codes + begin * stride, stride};
  const TransposedTiles<V, T> transposed = {scratch + 2 * numbers * sizeof(float)};
  constexpr size_t kMaxRowsAtOnce = kRowsAtOnce<V, Split, T>;
  const size_t passes = (input.rows + kMaxRowsAtOnce - 1) / kMaxRowsAtOnce;
  // Equal passes: one row takes half as long as eight, except in AVX2, which has registers for four.
  const size_t at_once = V::kRowDivisor > 1 ? kMaxRowsAtOnce : (input.rows + passes - 1) / passes;
  const bool on_the_fly = (T == 1 || V::kUnpacksPairs) && passes == 1 && outputs == T * V::kLanes;
  for (size_t t = 0; t < T; ++t) {
    const size_t first = begin + t * V::kLanes, exist = m.n - first < V::kLanes ? m.n - first : V::kLanes;
    read_scales<V>(m, first, exist, [&](size_t block, auto scale, auto zeros) {
      V::store(scales.scale + (t * blocks + block) * V::kLanes, scale);
      V::store(scales.offset + (t * blocks + block) * V::kLanes, V::mul(scale, V::to_float(zeros)));
    });
    if (on_the_fly) continue;
    transpose_pieces<V>(m, first, exist, 0, pieces,
                        [&](size_t piece, const typename V::Ints* codes) { transposed.put(t, piece, codes); });
  }
  Prefetcher prefetcher = prefetch_tile(m, begin + outputs, T * V::kLanes, pieces * passes);
  for (size_t row = 0; row < input.rows; row += at_once) {
    const size_t rows = input.rows - row < at_once ? input.rows - row : at_once;
    alignas(64) float sums[kMaxRowsAtOnce * T * V::kLanes];
    if (on_the_fly) {
      multiply_up_to<V, Split, T>(rows, m, input, packed, scales, row, prefetcher, sums);
    } else {
      multiply_up_to<V, Split, T>(rows, m, input, transposed, scales, row, prefetcher, sums);
    }
    for (size_t r = 0; r < rows; ++r) {
      std::memcpy(out + (row + r) * m.n + begin, sums + r * T * V::kLanes, outputs * sizeof(float));
    }
  }
}

template <class V, bool Split>
void multiply_tiles(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                    uint8_t* scratch) {
  if constexpr (V::kTilesAtOnce > 1) {
    if (V::kPairTilesForFewRows || input.rows > kRowsAtOnce<V, Split, 1>) {
      for (; first + V::kTilesAtOnce <= last; first += V::kTilesAtOnce) {
        multiply_tile_pair<V, Split, V::kTilesAtOnce>(m, input, out, first * V::kLanes, scratch);
      }
    }
  }
  for (; first < last; ++first) multiply_tile_pair<V, Split, 1>(m, input, out, first * V::kLanes, scratch);
}

// Returns the largest magnitude of x, or NaN if x has a NaN: magnitudes of floats are ordered as their bits are.
float largest_magnitude(const float* x, size_t count) {
  int32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bits &= 0x7fffffff;
    largest = bits > largest ? bits : largest;
  }
  float result;
  std::memcpy(&result, &largest, sizeof result);
  return result;
}

// Quantizes one row of x (rows, K). Rows of values are `width` apart.
template <class V>
void quantize_row(const float* x, size_t row, const Int4Matrix& m, const Int4Input& input, size_t width) {
  const size_t blocks = m.blocks();
  x += row * m.k;
  for (size_t block = 0; block < blocks; ++block) {
    const size_t begin = block * m.block, left = m.k - begin;
    float padded[128];
    const float* from = x + begin;
    if (left < m.block) {
      std::memcpy(padded, from, left * sizeof(float));
      std::memset(padded + left, 0, (m.block - left) * sizeof(float));
      from = padded;
    }
    const float largest = largest_magnitude(from, m.block);
    const float levels = input.low != nullptr ? 127.0f * 256.0f : 127.0f;
    const float scale = largest / levels, inverse = largest > 0 ? levels / largest : 0.0f;
    const size_t at = row * width + begin;
    const int sum =
        V::quantize(from, m.block, inverse, input.values + at, input.low != nullptr ? input.low + at : nullptr);
    const bool finite = largest <= 3.402823466e38f;  // false for NaN
    input.scales[row * blocks + block] = finite ? scale : largest - largest;
    input.sums[row * blocks + block] = finite ? scale * static_cast<float>(sum) : largest - largest;
  }
}

}  // namespace
}  // namespace blip2rt
