// The product of int8_matmul.h written once for all instruction sets. Included behind the target pragma of the file
// that has the vectors: V, with `kLanes` outputs side by side; a tile is four of them. Everything has internal linkage,
// as each such file compiles it for another processor.
#pragma once

#include <cmath>
#include <cstring>

#include "int8_matmul.h"

namespace blip2rt {
namespace {

constexpr size_t kGroup = 4;    // weights of an output that one instruction takes
constexpr size_t kVectors = 4;  // side by side in a tile
constexpr size_t kStrip = 256;  // outputs of the tiles that are unpacked together, at most
constexpr size_t kSoon = 64;    // rows of the matrix that the memory is asked for in advance

template <class V>
constexpr size_t kTogether = kStrip / (kVectors * V::kLanes);

// 4 rows of one tile -> the four vectors that are multiplied, and added to the sums of each output's codes.
template <class V>
inline void unpack_group(const int8_t* const* rows, uint8_t* to, int32_t* sums) {
  typename V::Ints quads[kVectors];
  V::interleave(rows, quads);
  for (size_t v = 0; v < kVectors; ++v) {
    uint8_t* sum = reinterpret_cast<uint8_t*>(sums + v * V::kLanes);
    V::store(to + v * sizeof(typename V::Ints), quads[v]);
    V::store(sum, V::dot(V::load(sum), V::ones(), quads[v]));
  }
}

// Codes of some tiles side by side, each in the order that it is multiplied in: of every group of 4 rows of the matrix
// the four vectors. Outputs stand as `interleave` leaves them; what is not there is zero. Also sums over K of each
// output's codes. All at once, as rows lie far apart in memory: no processor foresees them.
template <class V>
void unpack_tiles(size_t tiles, const Int8Matrix& m, size_t depth, size_t begin, uint8_t* to, int32_t* sums) {
  constexpr size_t kTile = kVectors * V::kLanes;
  std::memset(sums, 0, tiles * kTile * sizeof *sums);
  for (size_t k = 0; k < depth; k += kGroup) {
    const int8_t* group = m.codes + k * m.n;
    for (size_t tile = 0; tile < tiles; ++tile) {
      const size_t first = begin + tile * kTile, outputs = m.n - first < kTile ? m.n - first : kTile;
      const int8_t* rows[kGroup];
      alignas(64) int8_t copy[kGroup][kTile];
      if (k + kGroup <= m.k && outputs == kTile) {
        for (size_t i = 0; i < kGroup; ++i) rows[i] = group + i * m.n + first;
      } else {
        std::memset(copy, 0, sizeof copy);
        for (size_t i = 0; i < kGroup; ++i) {
          if (k + i < m.k) std::memcpy(copy[i], group + i * m.n + first, outputs);
          rows[i] = copy[i];
        }
      }
      if (k + kSoon + kGroup <= m.k) {
        for (size_t i = 0; i < kGroup; ++i) __builtin_prefetch(group + (kSoon + i) * m.n + first, 0, 2);
      }
      unpack_group<V>(rows, to + (tile * depth + k) * kTile, sums + tile * kTile);
    }
  }
}

// K, rounded up with codes of zero to what an instruction takes.
template <class V>
size_t depth_of(const Int8Matrix& m) {
  return (m.k + V::kDepth - 1) / V::kDepth * V::kDepth;
}

// R rows from `row` on, times one tile.
template <class V, size_t R>
void multiply_rows(const Int8Input& input, size_t depth, const uint8_t* codes, size_t row,
                   typename V::Ints (*out)[kVectors]) {
  typename V::Ints products[R][kVectors];
  for (size_t r = 0; r < R; ++r) {
    for (size_t v = 0; v < kVectors; ++v) products[r][v] = V::zero_ints();
  }
  const uint8_t* values = input.values + row * input.width;
  for (size_t k = 0; k < depth; k += kGroup) {
    typename V::Ints quads[kVectors];
    for (size_t v = 0; v < kVectors; ++v) quads[v] = V::load(codes + (k * V::kLanes * kVectors) + v * sizeof(quads[v]));
    for (size_t r = 0; r < R; ++r) {
      const typename V::Ints four = V::four_of(values + r * input.width + k);
      for (size_t v = 0; v < kVectors; ++v) products[r][v] = V::dot(products[r][v], four, quads[v]);
    }
  }
  for (size_t r = 0; r < R; ++r) {
    for (size_t v = 0; v < kVectors; ++v) out[r][v] = products[r][v];
  }
}

template <class V, size_t R = V::kRows>
void multiply_some(size_t rows, const Int8Input& input, size_t depth, const uint8_t* codes, size_t row,
                   typename V::Ints (*out)[kVectors]) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_some<V, R - 1>(rows, input, depth, codes, row, out);
  }
  multiply_rows<V, R>(input, depth, codes, row, out);
}

template <class V>
using Products = typename V::Ints[V::kRows][kVectors];  // of some rows and a tile

// Up to kRows rows from `row` on, times tiles that lie side by side.
template <class V>
void multiply_strip(size_t rows, size_t tiles, const Int8Input& input, size_t depth, const uint8_t* codes, size_t row,
                    Products<V>* out) {
  constexpr size_t kTile = kVectors * V::kLanes;
  for (size_t tile = 0; tile < tiles; ++tile) {
    multiply_some<V>(rows, input, depth, codes + tile * kTile * depth, row, out[tile]);
  }
}

// Products of integers -> outputs of one tile.
template <class V>
void finish_rows(const Int8Matrix& m, const Int8Input& input, size_t row, size_t rows, size_t begin,
                 const int32_t* code_sums, typename V::Ints (*products)[kVectors], float* out) {
  constexpr size_t kTile = kVectors * V::kLanes;
  const size_t outputs = m.n - begin < kTile ? m.n - begin : kTile;
  alignas(64) float scales[kTile] = {}, bias[kTile] = {}, result[kTile];
  std::memcpy(scales, m.scales + begin, outputs * sizeof(float));
  if (m.bias != nullptr) std::memcpy(bias, m.bias + begin, outputs * sizeof(float));
  for (size_t r = 0; r < rows; ++r) {
    const typename V::Ints zero = V::broadcast(input.zeros[row + r]);
    for (size_t v = 0; v < kVectors; ++v) {
      const typename V::Ints sums = V::load(reinterpret_cast<const uint8_t*>(code_sums + v * V::kLanes));
      products[r][v] = V::sub(products[r][v], V::mul(zero, sums));
    }
    V::in_order(products[r]);
    for (size_t v = 0; v < kVectors; ++v) {
      V::store(result + v * V::kLanes,
               V::affine(products[r][v], input.scales[row + r], scales + v * V::kLanes, bias + v * V::kLanes));
    }
    float* to = out + (row + r) * m.n + begin;
    if (outputs == kTile) {  // whose size the compiler knows
      std::memcpy(to, result, sizeof result);
    } else {
      std::memcpy(to, result, outputs * sizeof(float));
    }
  }
}

template <class V>
void multiply_tiles(const Int8Matrix& m, const Int8Input& input, float* out, size_t first, size_t last,
                    uint8_t* codes) {
  constexpr size_t kTile = kVectors * V::kLanes;
  const size_t tiles = last - first, begin = first * kTile, depth = depth_of<V>(m);
  alignas(64) int32_t code_sums[kTogether<V> * kTile];
  unpack_tiles<V>(tiles, m, depth, begin, codes, code_sums);
  Products<V> products[kTogether<V>];
  for (size_t row = 0; row < input.rows; row += V::kRows) {
    const size_t rows = input.rows - row < V::kRows ? input.rows - row : V::kRows;
    multiply_strip<V>(rows, tiles, input, depth, codes, row, products);
    for (size_t tile = 0; tile < tiles; ++tile) {
      finish_rows<V>(m, input, row, rows, begin + tile * kTile, code_sums + tile * kTile, products[tile], out);
    }
  }
}

// One row of x (rows, K).
template <class V>
void quantize_row(const float* x, size_t row, size_t k, const Int8Input& input) {
  x += row * k;
  float low = 0, high = 0;
  const bool finite = V::range(x, k, &low, &high);
  const float scale = (high - low) / 255.0f, inverse = high > low ? 255.0f / (high - low) : 0.0f;
  const float zero = std::nearbyint(-low * inverse);
  uint8_t* to = input.values + row * input.width;
  V::quantize(x, k, inverse, zero, to);
  std::memset(to + k, static_cast<int>(zero), input.width - k);
  input.scales[row] = finite ? scale : std::nanf("");
  input.zeros[row] = static_cast<int32_t>(zero);
}

template <class V>
constexpr Int8Kernel kernel(const char* name, decltype(Int8Kernel::multiply) multiply) {
  return {name, kVectors * V::kLanes, kTogether<V>, quantize_row<V>, multiply};
}

}  // namespace
}  // namespace blip2rt
