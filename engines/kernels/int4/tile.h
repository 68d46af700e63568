// The product of matmul.h, written once for all instruction sets. A file includes this behind its target pragma and
// passes its vectors as V, with `kLanes` outputs side by side. Everything has internal linkage, because each such file
// compiles it for another processor.
#pragma once

#include <cstring>

#include "kernels/ahead.h"
#include "kernels/int4/matmul.h"

namespace blip2rt {
namespace {

constexpr size_t kPiece = 32;  // weights of an output that are unpacked together: 16 bytes

// Rows of activations that are multiplied together: as many as the registers hold sums of. Two planes need two sums.
template <class V, bool Split>
constexpr size_t kRows = Split ? V::kSplitRows : V::kWholeRows;

// Multiplies a piece of codes with 32 values, where one instruction multiplies four.
template <class V>
typename V::Ints dot_fours(typename V::Ints sum, const typename V::Ints* codes, const int8_t* values) {
  for (size_t i = 0; i < kPiece / 4; ++i) {
    int32_t four;
    std::memcpy(&four, values + 4 * i, sizeof four);
    sum = V::dot(sum, codes[i], four);
  }
  return sum;
}

// Returns whether `read` values from the first one of an output on, which has `own`, lie in the matrix. What is read
// beyond the output then belongs to the next ones.
bool inside(const Int4Matrix& m, size_t output, size_t own, size_t read) { return output * own + read <= m.n * own; }

// A tile's scales and scales * zero points (blocks, kLanes).
template <class V>
struct Scales {
  float *scale, *offset;
};

// Copies kLanes rows of 16 bytes. Behind the last of `rows` it repeats that one; behind `bytes` it writes zeros.
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
  const size_t read = (blocks + 7) / 8 * 8, bottom = first + V::kLanes - 1;  // 8 blocks at once
  const bool beyond = inside(m, bottom, blocks, read) && inside(m, bottom, zero_bytes, read / 2);
  alignas(64) uint8_t copy[16 * V::kLanes];
  for (size_t block = 0; block < blocks; block += 8) {
    const size_t count = blocks - block < 8 ? blocks - block : 8;
    typename V::Ints pairs[4];
    alignas(64) uint32_t packed[V::kLanes];
    if (beyond) {
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

// The codes of a tile, which are unpacked as they are needed.
template <class V>
struct Packed {
  const uint8_t* codes;
  size_t stride;

  void piece(size_t index, typename V::Ints* to) const {
    typename V::Ints packed[4];
    V::transpose(codes + index * (kPiece / 2), stride, packed);
    for (size_t i = 0; i < 4; ++i) {
      to[2 * i] = V::low_nibbles(packed[i]);
      to[2 * i + 1] = V::high_nibbles(packed[i]);
    }
  }
};

// Calls put(index, eight registers of codes) for pieces of a tile, of which `outputs` exist.
template <class V, class Put>
void unpack_pieces(const Int4Matrix& m, size_t begin, size_t outputs, size_t first, size_t last, const Put& put) {
  const size_t stride = m.blocks() * m.block / 2;
  const Packed<V> packed = {m.codes + begin * stride, stride};
  alignas(64) uint8_t copy[16 * V::kLanes];
  for (size_t piece = first; piece < last; ++piece) {
    typename V::Ints codes[8];
    if (outputs < V::kLanes) {  // rows beyond the matrix must not be read
      copy_rows<V>(packed.codes + piece * (kPiece / 2), stride, outputs, 16, copy);
      Packed<V>{copy, 16}.piece(0, codes);
    } else {
      packed.piece(piece, codes);
    }
    put(piece, codes);
  }
}

// The codes of a tile that were unpacked before, for many rows.
template <class V>
struct Unpacked {
  const uint8_t* codes;

  void piece(size_t index, typename V::Ints* to) const {
    for (size_t i = 0; i < 8; ++i) to[i] = V::load(codes + (8 * index + i) * sizeof(typename V::Ints));
  }
};

// Prefetches the tile behind a tile of `outputs` outputs, in so many steps: a tile's rows are too many streams for the
// processor to foresee.
Ahead next_tile(const Int4Matrix& m, size_t tile, size_t outputs, size_t steps) {
  const size_t stride = m.blocks() * m.block / 2, begin = (tile + 1) * outputs, left = begin < m.n ? m.n - begin : 0;
  return {m.codes + (m.n - left) * stride, left < outputs ? left : outputs, stride, stride, steps};
}

// Multiplies R rows from `row` on with one tile.
template <class V, bool Split, size_t R, class Codes>
void multiply_rows(const Int4Matrix& m, const Int4Input& input, const Codes& codes, const Scales<V>& scales, size_t row,
                   Ahead& ahead, float* sums) {
  const size_t blocks = m.blocks(), width = blocks * m.block, pieces = m.block / kPiece;
  typename V::Floats total[R];
  for (size_t r = 0; r < R; ++r) total[r] = V::zero();
  for (size_t block = 0; block < blocks; ++block) {
    typename V::Ints products[R], lows[R];
    for (size_t r = 0; r < R; ++r) products[r] = lows[r] = V::no_products();
    ahead.step();
    for (size_t piece = block * pieces; piece < (block + 1) * pieces; ++piece) {
      typename V::Ints unpacked[8];
      codes.piece(piece, unpacked);
      for (size_t r = 0; r < R; ++r) {
        const size_t at = (row + r) * width + piece * kPiece;
        products[r] = V::dot_piece(products[r], unpacked, input.values + at);
        if constexpr (Split) lows[r] = V::dot_piece(lows[r], unpacked, input.low + at);
      }
    }
    const typename V::Floats scale = V::load_floats(scales.scale + block * V::kLanes);
    const typename V::Floats offset = V::load_floats(scales.offset + block * V::kLanes);
    for (size_t r = 0; r < R; ++r) {
      const size_t at = (row + r) * blocks + block;
      if constexpr (Split) products[r] = V::join(products[r], lows[r]);
      const typename V::Floats whole = V::mul(V::to_float(products[r]), V::broadcast(input.scales[at]));
      total[r] = V::mul_add(whole, scale, V::mul_sub(offset, V::broadcast(input.sums[at]), total[r]));
    }
  }
  for (size_t r = 0; r < R; ++r) V::store(sums + r * V::kLanes, total[r]);
}

template <class V, bool Split, class Codes, size_t R = 1>
void multiply_some(size_t rows, const Int4Matrix& m, const Int4Input& input, const Codes& codes,
                   const Scales<V>& scales, size_t row, Ahead& ahead, float* sums) {
  if constexpr (R < kRows<V, Split>) {
    if (rows > R) return multiply_some<V, Split, Codes, R + 1>(rows, m, input, codes, scales, row, ahead, sums);
  }
  multiply_rows<V, Split, R>(m, input, codes, scales, row, ahead, sums);
}

template <class V, bool Split>
void multiply_tiles(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                    uint8_t* scratch) {
  const size_t blocks = m.blocks(), stride = blocks * m.block / 2;
  const Scales<V> scales = {reinterpret_cast<float*>(scratch), reinterpret_cast<float*>(scratch) + blocks * V::kLanes};
  constexpr size_t kMost = kRows<V, Split>;
  uint8_t* unpacked = scratch + 2 * blocks * V::kLanes * sizeof(float);
  for (size_t tile = first; tile < last; ++tile) {
    const size_t begin = tile * V::kLanes, outputs = m.n - begin < V::kLanes ? m.n - begin : V::kLanes;
    read_scales<V>(m, begin, outputs, [&](size_t block, auto scale, auto zeros) {
      V::store(scales.scale + block * V::kLanes, scale);
      V::store(scales.offset + block * V::kLanes, V::mul(scale, V::to_float(zeros)));
    });
    const Packed<V> packed = {m.codes + begin * stride, stride};
    const bool first_all = input.rows > kMost || outputs < V::kLanes;  // unpack all before anything is multiplied
    if (first_all) {
      unpack_pieces<V>(m, begin, outputs, 0, blocks * m.block / kPiece, [&](size_t piece, const auto* codes) {
        for (size_t i = 0; i < 8; ++i) V::store(unpacked + (8 * piece + i) * sizeof codes[i], codes[i]);
      });
    }
    Ahead ahead = next_tile(m, tile, V::kLanes, blocks * ((input.rows + kMost - 1) / kMost));
    for (size_t row = 0; row < input.rows; row += kMost) {
      const size_t rows = input.rows - row < kMost ? input.rows - row : kMost;
      alignas(64) float sums[kMost * V::kLanes];
      if (first_all) {
        multiply_some<V, Split>(rows, m, input, Unpacked<V>{unpacked}, scales, row, ahead, sums);
      } else {
        multiply_some<V, Split>(rows, m, input, packed, scales, row, ahead, sums);
      }
      for (size_t r = 0; r < rows; ++r) {
        std::memcpy(out + (row + r) * m.n + begin, sums + r * V::kLanes, outputs * sizeof(float));
      }
    }
  }
}

// Quantizes one row of x (rows, K). Rows of values lie `width` apart.
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
    const float largest = V::largest(from, m.block);
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
