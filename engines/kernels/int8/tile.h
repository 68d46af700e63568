// The int8 product in tiles, as templates over the vectors V of an instruction set, with kLanes outputs per vector and
// four vectors per tile. One instruction multiplies `kGroup` weights of each output, which fill 32 bits of a vector, by
// as many values. `kValueOffset` is subtracted from values if the instruction needs them signed. Include it after
// BLIP2RT_TARGET. Everything has internal linkage, because each including file compiles it for another processor.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels/int8/matmul.h"
#include "kernels/prefetch.h"

namespace blip2rt {
namespace {

constexpr size_t kTileVectors = 4;    // vectors in a tile
constexpr size_t kPieceWeights = 16;  // weights of an output unpacked at once
constexpr size_t kMaxOutputsPerCall = 256;

template <class V>
constexpr size_t kMaxTiles = kMaxOutputsPerCall / (kTileVectors * V::kLanes);

template <class V>
constexpr size_t kPieceGroups = kPieceWeights / V::kGroup;

// The bytes of a tile's unpacked codes for `depth` elements of K.
template <class V>
constexpr size_t tile_bytes(size_t depth) {
  return depth / V::kGroup * kTileVectors * sizeof(typename V::Ints);
}

// Unpacks the codes of some tiles in the order in which they are multiplied: four vectors per group, zero-padded at the
// end of the matrix. Sums each output's codes over K. Prefetches the outputs of the next vector, which are too many
// streams for the hardware prefetcher.
template <class V>
void unpack_tiles(size_t tiles, const Int8Matrix& m, size_t depth, size_t begin, uint8_t* to, int32_t* sums) {
  for (size_t vector = 0; vector < tiles * kTileVectors; ++vector) {
    const size_t first = begin + vector * V::kLanes, left = first < m.n ? m.n - first : 0;
    const size_t outputs = left < V::kLanes ? left : V::kLanes;
    const uint8_t* codes = reinterpret_cast<const uint8_t*>(m.codes + (m.n - left) * m.k);
    uint8_t* of_vector =
        to + vector / kTileVectors * tile_bytes<V>(depth) + vector % kTileVectors * sizeof(typename V::Ints);
    typename V::Ints sum = {};
    const size_t behind = left - outputs;
    Prefetcher prefetcher(codes + outputs * m.k, behind < V::kLanes ? behind : V::kLanes, m.k, m.k,
                          depth / kPieceWeights);
    for (size_t k = 0; k < depth; k += kPieceWeights) {
      typename V::Ints groups[kPieceGroups<V>];
      prefetcher.step();
      if (outputs == V::kLanes && k + kPieceWeights <= m.k) {
        V::transpose(codes + k, m.k, groups);
      } else {
        uint8_t copy[V::kLanes * kPieceWeights] = {};
        const size_t some = m.k - k < kPieceWeights ? m.k - k : kPieceWeights;
        for (size_t i = 0; i < outputs; ++i) std::memcpy(copy + i * kPieceWeights, codes + i * m.k + k, some);
        V::transpose(copy, kPieceWeights, groups);
      }
      for (size_t group = 0; group < kPieceGroups<V>; ++group) {
        V::store(of_vector + tile_bytes<V>(k + group * V::kGroup), groups[group]);
        sum = V::dot(sum, V::ones(), groups[group]);
      }
    }
    V::store(reinterpret_cast<uint8_t*>(sums + vector * V::kLanes), sum);
  }
}

// Multiplies four vectors of codes by one group of 16 values, for instructions that need the group in every lane.
template <class V, size_t Group>
void dot_broadcast(typename V::Ints* sums, const uint8_t* values, const typename V::Ints* codes) {
  int32_t group;
  std::memcpy(&group, values + Group * sizeof group, sizeof group);
  for (size_t v = 0; v < kTileVectors; ++v) sums[v] = V::dot(sums[v], V::broadcast(group), codes[v]);
}

// K rounded up to whole pieces; the padding has codes of zero.
inline size_t padded_depth(const Int8Matrix& m) { return (m.k + kPieceWeights - 1) / kPieceWeights * kPieceWeights; }

// Multiplies a piece of one tile by R rows.
template <class V, size_t R, size_t... Group>
void multiply_piece(const uint8_t* codes, const typename V::Values* of_rows, typename V::Ints (*products)[kTileVectors],
                    std::index_sequence<Group...>) {
  const auto add_group = [&](auto group) {
    typename V::Ints of_group[kTileVectors];
    for (size_t v = 0; v < kTileVectors; ++v)
      of_group[v] = V::load(codes + (group * kTileVectors + v) * sizeof(of_group[v]));
    for (size_t r = 0; r < R; ++r) V::template dot_group<group>(products[r], of_rows[r], of_group);
  };
  (add_group(std::integral_constant<size_t, Group>()), ...);
}

// Multiplies R rows from `row` on by one tile.
template <class V, size_t R>
void multiply_rows(const Int8Input& input, size_t depth, const uint8_t* codes, size_t row,
                   typename V::Ints (*out)[kTileVectors]) {
  typename V::Ints products[R][kTileVectors] = {};
  const uint8_t* values = input.values + row * input.width;
  for (size_t k = 0; k < depth; k += kPieceWeights) {
    typename V::Values of_rows[R];
    for (size_t r = 0; r < R; ++r) of_rows[r] = V::values(values + r * input.width + k * sizeof(typename V::Value));
    multiply_piece<V, R>(codes + tile_bytes<V>(k), of_rows, products, std::make_index_sequence<kPieceGroups<V>>());
  }
  for (size_t r = 0; r < R; ++r) {
    for (size_t v = 0; v < kTileVectors; ++v) out[r][v] = products[r][v];
  }
}

template <class V, size_t R = V::kRows>
void multiply_up_to(size_t rows, const Int8Input& input, size_t depth, const uint8_t* codes, size_t row,
                    typename V::Ints (*out)[kTileVectors]) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_up_to<V, R - 1>(rows, input, depth, codes, row, out);
  }
  multiply_rows<V, R>(input, depth, codes, row, out);
}

// Scales integer products and writes the outputs of one tile.
template <class V>
void write_rows(const Int8Matrix& m, const Int8Input& input, size_t row, size_t rows, size_t begin,
                const int32_t* code_sums, typename V::Ints (*products)[kTileVectors], float* out) {
  constexpr size_t kTile = kTileVectors * V::kLanes;
  const size_t outputs = m.n - begin < kTile ? m.n - begin : kTile;
  alignas(64) float scales[kTile] = {}, bias[kTile] = {}, result[kTile];
  std::memcpy(scales, m.scales + begin, outputs * sizeof(float));
  if (m.bias != nullptr) std::memcpy(bias, m.bias + begin, outputs * sizeof(float));
  for (size_t r = 0; r < rows; ++r) {
    const typename V::Ints zero = V::broadcast(input.zeros[row + r]);
    for (size_t v = 0; v < kTileVectors; ++v) {
      const typename V::Ints sums = V::load(reinterpret_cast<const uint8_t*>(code_sums + v * V::kLanes));
      V::store(result + v * V::kLanes, V::affine(V::minus_product(products[r][v], zero, sums), input.scales[row + r],
                                                 scales + v * V::kLanes, bias + v * V::kLanes));
    }
    float* to = out + (row + r) * m.n + begin;
    if (outputs == kTile) {  // the compiler knows the size
      std::memcpy(to, result, sizeof result);
    } else {
      std::memcpy(to, result, outputs * sizeof(float));
    }
  }
}

template <class V>
void multiply_tiles(const Int8Matrix& m, const Int8Input& input, float* out, size_t first, size_t last,
                    uint8_t* codes) {
  constexpr size_t kTile = kTileVectors * V::kLanes;
  const size_t tiles = last - first, begin = first * kTile, depth = padded_depth(m);
  alignas(64) int32_t code_sums[kMaxTiles<V> * kTile];
  unpack_tiles<V>(tiles, m, depth, begin, codes, code_sums);
  for (size_t row = 0; row < input.rows; row += V::kRows) {
    const size_t rows = input.rows - row < V::kRows ? input.rows - row : V::kRows;
    for (size_t tile = 0; tile < tiles; ++tile) {
      typename V::Ints products[V::kRows][kTileVectors];
      multiply_up_to<V>(rows, input, depth, codes + tile * tile_bytes<V>(depth), row, products);
      write_rows<V>(m, input, row, rows, begin + tile * kTile, code_sums + tile * kTile, products, out);
    }
  }
}

// How a row is quantized: value = round(x * inverse) + zero.
struct RowQuantization {
  float inverse, zero;
};

// Chooses how to quantize a row of K values, and writes its scale and zero point to `input`.
template <class V>
RowQuantization choose_quantization(const float* x, size_t row, size_t k, const Int8Input& input) {
  float low = 0, high = 0;
  const bool finite = V::range(x, k, &low, &high);
  constexpr float kMinRange = 255.0f / 3.402823466e38f;  // its inverse is finite
  const float inverse = finite && high - low > kMinRange ? 255.0f / (high - low) : 0.0f;
  const float zero = finite ? std::nearbyint(-low * inverse) : 0.0f;
  input.scales[row] = finite ? (high - low) / 255.0f : std::nanf("");
  input.zeros[row] = static_cast<int32_t>(zero) - V::kValueOffset;
  return {inverse, zero};
}

// Quantizes rows to values (rows, width), zero-padded after K.
template <class V>
void quantize_rows(const float* x, size_t first, size_t rows, size_t k, const Int8Input& input) {
  for (size_t row = first; row < first + rows; ++row) {
    const RowQuantization rounding = choose_quantization<V>(x + row * k, row, k, input);
    auto* to = reinterpret_cast<typename V::Value*>(input.values + row * input.width);
    std::memset(to + k, 0, input.width - k * sizeof *to);
    V::quantize(x + row * k, k, rounding.inverse, rounding.zero, to);
  }
}

template <class V>
constexpr Int8Kernel kernel(const char* name) {
  const auto tile_scratch_size = [](size_t k) { return tile_bytes<V>(Int8Kernel::round_up_to_line(k)); };
  static_assert(V::kGroup * sizeof(typename V::Value) == sizeof(int32_t));
  return {name,
          kTileVectors * V::kLanes,
          kMaxTiles<V>,
          sizeof(typename V::Value),
          tile_scratch_size,
          quantize_rows<V>,
          multiply_tiles<V>};
}

}  // namespace
}  // namespace blip2rt
