// The product of int4_matmul.h written once for all instruction sets. Included behind the target pragma of the file
// that has the vectors: V, with `kLanes` outputs side by side. Everything has internal linkage, as each such file
// compiles it for another processor.
#pragma once

#include <cstring>

#include "int4_matmul.h"

namespace blip2rt {
namespace {

constexpr size_t kPiece = 32;  // weights a row that are unpacked at once: 16 bytes
constexpr size_t kAhead = 2;   // tiles that the memory is asked for in advance
constexpr size_t kRows = 8;    // rows of activations whose sums are kept in registers
constexpr size_t kPair = 2;    // tiles side by side that more rows than that are multiplied by

// Of a tile, for each block: scales of the outputs, and scales * zero points; or of a pair, the zero points themselves,
// in each byte of a lane. `stride` lanes from block to block.
template <class V>
struct Scales {
  float *scale, *offset;
  size_t stride = V::kLanes;
};

// Reads L rows of 16 bytes, of which fewer may exist: beyond `rows` the last one counts, beyond `bytes` zeros.
template <class V>
void copy_rows(const uint8_t* base, size_t stride, size_t rows, size_t bytes, uint8_t* to) {
  std::memset(to, 0, 16 * V::kLanes);
  for (size_t lane = 0; lane < V::kLanes; ++lane) {
    std::memcpy(to + 16 * lane, base + stride * (lane < rows ? lane : rows - 1), bytes);
  }
}

template <class V, bool kPaired>
void read_scales(const Int4Matrix& m, size_t first, size_t rows, const Scales<V>& to) {
  const size_t blocks = m.blocks(), zero_bytes = (blocks + 1) / 2;
  const uint8_t* scales = reinterpret_cast<const uint8_t*>(m.scales + first * blocks);
  const uint8_t* zeros = m.zero_points + first * zero_bytes;
  alignas(64) uint8_t copy[16 * V::kLanes];
  for (size_t block = 0; block < blocks; block += 8) {
    const size_t count = blocks - block < 8 ? blocks - block : 8;
    typename V::Ints pairs[4];
    if (count == 8 && rows == V::kLanes) {
      V::transpose(scales + 2 * block, 2 * blocks, pairs);
    } else {
      copy_rows<V>(scales + 2 * block, 2 * blocks, rows, 2 * count, copy);
      V::transpose(copy, 16, pairs);
    }
    alignas(64) uint32_t packed[V::kLanes];
    for (size_t lane = 0; lane < V::kLanes; ++lane) {
      packed[lane] = 0;
      std::memcpy(&packed[lane], zeros + zero_bytes * (lane < rows ? lane : rows - 1) + block / 2, (count + 1) / 2);
    }
    typename V::Ints codes = V::load(packed);
    for (size_t i = 0; i < count; ++i) {
      const typename V::Floats scale = V::half(i % 2 == 0 ? pairs[i / 2] : V::high_half(pairs[i / 2]));
      const typename V::Ints zero = V::low_nibble_of_lane(codes);
      V::store(to.scale + (block + i) * to.stride, scale);
      if constexpr (kPaired) {
        V::store(reinterpret_cast<uint8_t*>(to.offset + (block + i) * to.stride), V::in_every_byte(zero));
      } else {
        V::store(to.offset + (block + i) * to.stride, V::mul(scale, V::to_float(zero)));
      }
      codes = V::next_nibble_of_lane(codes);
    }
  }
}

// Codes of a tile, unpacked as they are needed.
template <class V>
struct Packed {
  const uint8_t* codes;
  size_t stride;
  const uint8_t* next;  // a tile that will be read after this one, or nullptr

  void piece(size_t index, typename V::Ints* to) const {
    typename V::Ints packed[4];
    if (next != nullptr) {  // L rows at once are too many streams for the processor to foresee
      const uint8_t* ahead = next + V::kLanes * index * (kPiece / 2);
      for (size_t line = 0; line < V::kLanes * (kPiece / 2); line += 64) __builtin_prefetch(ahead + line, 0, 2);
    }
    V::transpose(codes + index * (kPiece / 2), stride, packed);
    for (size_t i = 0; i < 4; ++i) {
      to[2 * i] = V::low_nibbles(packed[i]);
      to[2 * i + 1] = V::high_nibbles(packed[i]);
    }
  }
};

// Codes of a tile that were unpacked before.
template <class V>
struct Unpacked {
  const uint8_t* codes;

  void piece(size_t index, typename V::Ints* to) const {
    for (size_t i = 0; i < 8; ++i) to[i] = V::load(codes + (8 * index + i) * sizeof(typename V::Ints));
  }
};

// R rows times one tile.
template <class V, size_t R, class Codes>
void multiply_rows(const Int4Matrix& m, const Int4Input& input, const Codes& codes, const Scales<V>& scales,
                   float* sums) {
  const size_t blocks = m.blocks(), width = blocks * m.block, pieces = m.block / kPiece;
  typename V::Floats total[R];
  for (size_t r = 0; r < R; ++r) total[r] = V::zero();
  for (size_t block = 0; block < blocks; ++block) {
    typename V::Ints products[R];
    for (size_t r = 0; r < R; ++r) products[r] = V::no_products();
    for (size_t piece = block * pieces; piece < (block + 1) * pieces; ++piece) {
      typename V::Ints unpacked[8];
      codes.piece(piece, unpacked);
      for (size_t r = 0; r < R; ++r) {
        const int8_t* values = input.values + r * width + piece * kPiece;
        for (size_t i = 0; i < 8; ++i) products[r] = V::dot(products[r], unpacked[i], values + 4 * i);
      }
    }
    const typename V::Floats scale = V::load_floats(scales.scale + block * V::kLanes);
    const typename V::Floats offset = V::load_floats(scales.offset + block * V::kLanes);
    for (size_t r = 0; r < R; ++r) {
      const size_t at = r * blocks + block;
      const typename V::Floats whole = V::mul(V::to_float(products[r]), V::broadcast(input.scales[at]));
      total[r] = V::mul_add(whole, scale, V::mul_sub(offset, V::broadcast(input.sums[at]), total[r]));
    }
  }
  for (size_t r = 0; r < R; ++r) V::store(sums + r * V::kLanes, total[r]);
}

template <class V, class Codes>
void multiply_some(size_t rows, const Int4Matrix& m, const Int4Input& input, const Codes& codes,
                   const Scales<V>& scales, float* sums) {
  switch (rows) {
    case 1: return multiply_rows<V, 1>(m, input, codes, scales, sums);
    case 2: return multiply_rows<V, 2>(m, input, codes, scales, sums);
    case 3: return multiply_rows<V, 3>(m, input, codes, scales, sums);
    case 4: return multiply_rows<V, 4>(m, input, codes, scales, sums);
    case 5: return multiply_rows<V, 5>(m, input, codes, scales, sums);
    case 6: return multiply_rows<V, 6>(m, input, codes, scales, sums);
    case 7: return multiply_rows<V, 7>(m, input, codes, scales, sums);
    default: return multiply_rows<V, kRows>(m, input, codes, scales, sums);
  }
}

// Unpacks the piece of a tile of which `outputs` are in the matrix.
template <class V>
void unpack(const Packed<V>& packed, size_t piece, size_t outputs, typename V::Ints* to) {
  if (outputs == V::kLanes) return packed.piece(piece, to);
  alignas(64) uint8_t copy[16 * V::kLanes];  // rows beyond the matrix must not be read
  copy_rows<V>(packed.codes + piece * (kPiece / 2), packed.stride, outputs, 16, copy);
  Packed<V>{copy, 16, nullptr}.piece(0, to);
}

// A pair of tiles for many rows: codes less their zero points, of each piece and group of 4 those of both tiles; scales
// of both; and what sums begin with, as values of rows lie kOffset too high (quantize_row).
template <class V>
struct Pair {
  uint8_t* codes;
  float* scales;
  uint8_t* starts;
};

template <class V>
void unpack_pair(const Int4Matrix& m, size_t tile, size_t tiles, const Pair<V>& to) {
  using Ints = typename V::Ints;
  const size_t blocks = m.blocks(), stride = blocks * m.block / 2, pieces = m.block / kPiece;
  int8_t offset[4];
  std::memset(offset, V::kOffset, sizeof offset);
  const Ints offsets = V::four_of(offset);
  for (size_t side = 0; side < kPair; ++side) {
    const size_t begin = (tile + side) * V::kLanes, left = begin < m.n ? m.n - begin : 0;
    const size_t outputs = left < V::kLanes ? left : V::kLanes;
    if (outputs == 0) {  // nothing reads what comes of it
      for (size_t block = 0; block < blocks; ++block) {
        V::store(to.scales + (kPair * block + side) * V::kLanes, V::zero());
        V::store(to.starts + (kPair * block + side) * sizeof(Ints), V::no_products());
      }
      for (size_t i = 0; i < 8 * blocks * pieces; ++i) {
        V::store(to.codes + (kPair * i + side) * sizeof(Ints), V::no_products());
      }
      continue;
    }
    // Zero points lie where the sums' beginnings will.
    float* zeros = reinterpret_cast<float*>(to.starts + side * sizeof(Ints));
    read_scales<V, true>(m, begin, outputs, {to.scales + side * V::kLanes, zeros, kPair * V::kLanes});
    const uint8_t* codes = m.codes + begin * stride;
    const bool more = tile + side + kPair < tiles;
    const Packed<V> packed = {codes, stride, more ? codes + kPair * V::kLanes * stride : nullptr};
    for (size_t block = 0; block < blocks; ++block) {
      uint8_t* start = to.starts + (kPair * block + side) * sizeof(Ints);
      const Ints zero = V::load(start);
      Ints sum = V::no_products();
      for (size_t piece = block * pieces; piece < (block + 1) * pieces; ++piece) {
        Ints unpacked[8];
        unpack<V>(packed, piece, outputs, unpacked);
        for (size_t i = 0; i < 8; ++i) {
          unpacked[i] = V::sub_bytes(unpacked[i], zero);
          sum = V::dot_signed(sum, unpacked[i], offsets);
          V::store(to.codes + (kPair * (8 * piece + i) + side) * sizeof(Ints), unpacked[i]);
        }
      }
      V::store(start, V::sub(V::no_products(), sum));
    }
  }
}

// Products of R rows with a pair of tiles. Not an array: compilers keep those in memory when they are as large as this.
template <class V, size_t R>
struct Products {
  typename V::Ints left, right;
  Products<V, R - 1> others;

  void begin(typename V::Ints left_start, typename V::Ints right_start) {
    left = left_start;
    right = right_start;
    others.begin(left_start, right_start);
  }

  void add(typename V::Ints left_codes, typename V::Ints right_codes, const int8_t* values, size_t width) {
    const typename V::Ints four = V::four_of(values);
    left = V::dot_signed(left, left_codes, four);
    right = V::dot_signed(right, right_codes, four);
    others.add(left_codes, right_codes, values + width, width);
  }

  // scales: of the rows, `blocks` apart.
  void scale(typename V::Floats left_scale, typename V::Floats right_scale, const float* scales, size_t blocks,
             float* sums) const {
    const typename V::Floats of_row = V::broadcast(*scales);
    V::store(sums, V::mul_add(V::to_float(left), V::mul(left_scale, of_row), V::load_floats(sums)));
    float* next = sums + V::kLanes;
    V::store(next, V::mul_add(V::to_float(right), V::mul(right_scale, of_row), V::load_floats(next)));
    others.scale(left_scale, right_scale, scales + blocks, blocks, next + V::kLanes);
  }
};

template <class V>
struct Products<V, 0> {
  void begin(typename V::Ints, typename V::Ints) {}
  void add(typename V::Ints, typename V::Ints, const int8_t*, size_t) {}
  void scale(typename V::Floats, typename V::Floats, const float*, size_t, float*) const {}
};

// R rows from `row` on, times a pair of tiles. Sums stay in memory: registers hold a block's.
template <class V, size_t R>
void multiply_pair(const Int4Matrix& m, const Int4Input& input, const Pair<V>& pair, size_t row, float* sums) {
  using Ints = typename V::Ints;
  const size_t blocks = m.blocks(), width = blocks * m.block, groups = m.block / 4;
  const int8_t* values = input.values + row * width;
  for (size_t i = 0; i < R * kPair; ++i) V::store(sums + i * V::kLanes, V::zero());
  for (size_t block = 0; block < blocks; ++block) {
    Products<V, R> products;
    const uint8_t* starts = pair.starts + kPair * block * sizeof(Ints);
    products.begin(V::load(starts), V::load(starts + sizeof(Ints)));
    for (size_t group = block * groups; group < (block + 1) * groups; ++group) {
      const uint8_t* codes = pair.codes + kPair * group * sizeof(Ints);
      products.add(V::load(codes), V::load(codes + sizeof(Ints)), values + 4 * group, width);
    }
    const float* scales = pair.scales + kPair * block * V::kLanes;
    products.scale(V::load_floats(scales), V::load_floats(scales + V::kLanes), input.scales + row * blocks + block,
                   blocks, sums);
  }
}

template <class V, size_t R = V::kPairRows>
void multiply_pairs(size_t rows, const Int4Matrix& m, const Int4Input& input, const Pair<V>& pair, size_t row,
                    float* sums) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_pairs<V, R - 1>(rows, m, input, pair, row, sums);
  }
  multiply_pair<V, R>(m, input, pair, row, sums);
}

// Tiles `first` to `last` for more rows than sums of one tile are kept of.
template <class V>
void multiply_many(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch) {
  const size_t tiles = (m.n + V::kLanes - 1) / V::kLanes, lanes = kPair * V::kLanes * m.blocks();
  const Pair<V> pair = {scratch + 2 * lanes * sizeof(float), reinterpret_cast<float*>(scratch),
                        scratch + lanes * sizeof(float)};
  const size_t turns = (input.rows + V::kPairRows - 1) / V::kPairRows, at_once = (input.rows + turns - 1) / turns;
  for (size_t tile = first; tile < last; tile += kPair) {
    const size_t begin = tile * V::kLanes, end = (tile + kPair < last ? tile + kPair : last) * V::kLanes;
    const size_t outputs = (end < m.n ? end : m.n) - begin;
    unpack_pair<V>(m, tile, tiles, pair);
    for (size_t row = 0; row < input.rows; row += at_once) {
      const size_t rows = input.rows - row < at_once ? input.rows - row : at_once;
      alignas(64) float sums[V::kPairRows * kPair * V::kLanes];
      multiply_pairs<V>(rows, m, input, pair, row, sums);
      for (size_t r = 0; r < rows; ++r) {
        std::memcpy(out + (row + r) * m.n + begin, sums + r * kPair * V::kLanes, outputs * sizeof(float));
      }
    }
  }
}

template <class V>
void multiply_tiles(const Int4Matrix& m, const Int4Input& input, float* out, size_t first, size_t last,
                    uint8_t* scratch) {
  if (input.rows > kRows) return multiply_many<V>(m, input, out, first, last, scratch);
  const size_t tiles = (m.n + V::kLanes - 1) / V::kLanes;
  const size_t blocks = m.blocks(), stride = blocks * m.block / 2, pieces = blocks * m.block / kPiece;
  const Scales<V> scales = {reinterpret_cast<float*>(scratch), reinterpret_cast<float*>(scratch) + blocks * V::kLanes};
  uint8_t* unpacked = scratch + 2 * blocks * V::kLanes * sizeof(float);
  for (size_t tile = first; tile < last; ++tile) {
    const size_t begin = tile * V::kLanes, outputs = m.n - begin < V::kLanes ? m.n - begin : V::kLanes;
    read_scales<V, false>(m, begin, outputs, scales);
    const uint8_t* codes = m.codes + begin * stride;
    const Packed<V> packed = {codes, stride, tile + kAhead < tiles ? codes + kAhead * V::kLanes * stride : nullptr};
    alignas(64) float sums[kRows * V::kLanes];
    if (outputs < V::kLanes) {
      for (size_t piece = 0; piece < pieces; ++piece) {
        typename V::Ints codes_of[8];
        unpack<V>(packed, piece, outputs, codes_of);
        for (size_t i = 0; i < 8; ++i) V::store(unpacked + (8 * piece + i) * sizeof(typename V::Ints), codes_of[i]);
      }
      multiply_some<V>(input.rows, m, input, Unpacked<V>{unpacked}, scales, sums);
    } else {
      multiply_some<V>(input.rows, m, input, packed, scales, sums);
    }
    for (size_t r = 0; r < input.rows; ++r) {
      std::memcpy(out + r * m.n + begin, sums + r * V::kLanes, outputs * sizeof(float));
    }
  }
}

// One row of x (rows, K).
template <class V>
void quantize_row(const float* x, size_t row, const Int4Matrix& m, const Int4Input& input) {
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
    const float scale = largest / 127.0f, inverse = largest > 0 ? 127.0f / largest : 0.0f;
    int8_t* values = input.values + (row * blocks + block) * m.block;
    const int sum = V::quantize(from, m.block, inverse, values);
    if (input.rows > kRows) {
      for (size_t i = 0; i < m.block; ++i) values[i] = static_cast<int8_t>(values[i] ^ static_cast<int8_t>(V::kOffset));
    }
    const bool finite = largest <= 3.402823466e38f;  // false for NaN
    input.scales[row * blocks + block] = finite ? scale : largest - largest;
    input.sums[row * blocks + block] = finite ? scale * static_cast<float>(sum) : largest - largest;
  }
}

}  // namespace
}  // namespace blip2rt
