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
constexpr size_t kAhead = 2;    // tiles that the memory is asked for in advance
constexpr size_t kSoon = 64;    // rows that the cache is
constexpr size_t kLine = 16;    // floats that a line of it holds

// Codes of a tile in the order that they are multiplied in: of every group of 4 rows of the matrix the four vectors.
// Outputs stand as `interleave` leaves them; rows that are not there are zeros. Also sums over K of each output's
// codes.
template <class V>
void unpack_tile(const Int8Matrix& m, size_t width, size_t begin, size_t outputs, uint8_t* to, int32_t* sums) {
  constexpr size_t kTile = kVectors * V::kLanes;
  const bool whole = outputs == kTile;
  typename V::Ints total[kVectors];
  for (auto& t : total) t = V::zero_ints();
  for (size_t k = 0; k < width; k += kGroup) {
    const int8_t* rows[kGroup];
    alignas(64) int8_t copy[kGroup][kTile];
    for (size_t i = 0; i < kGroup; ++i) {
      const int8_t* row = m.codes + (k + i) * m.n + begin;
      const bool there = k + i < m.k;
      if (k + i + kSoon < m.k) __builtin_prefetch(row + kSoon * m.n, 0, 3);
      rows[i] = there && whole ? row : copy[i];
      if (there && whole) continue;
      std::memset(copy[i], 0, kTile);
      if (there) std::memcpy(copy[i], row, outputs);
    }
    typename V::Ints quads[kVectors];
    V::interleave(rows, quads);
    for (size_t v = 0; v < kVectors; ++v) {
      V::store(to + (k / kGroup * kVectors + v) * sizeof(typename V::Ints), quads[v]);
      total[v] = V::dot(total[v], V::ones(), quads[v]);
    }
  }
  for (size_t v = 0; v < kVectors; ++v) V::store(reinterpret_cast<uint8_t*>(sums + v * V::kLanes), total[v]);
}

// R rows from `row` on, times one tile.
template <class V, size_t R>
void multiply_rows(const Int8Input& input, const uint8_t* codes, size_t row, typename V::Ints (*out)[kVectors]) {
  typename V::Ints products[R][kVectors];
  for (size_t r = 0; r < R; ++r) {
    for (size_t v = 0; v < kVectors; ++v) products[r][v] = V::zero_ints();
  }
  const uint8_t* values = input.values + row * input.width;
  for (size_t k = 0; k < input.width; k += kGroup) {
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
void multiply_some(size_t rows, const Int8Input& input, const uint8_t* codes, size_t row,
                   typename V::Ints (*out)[kVectors]) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_some<V, R - 1>(rows, input, codes, row, out);
  }
  multiply_rows<V, R>(input, codes, row, out);
}

template <class V>
void multiply_tiles(const Int8Matrix& m, const Int8Input& input, float* out, size_t first, size_t last,
                    uint8_t* codes) {
  constexpr size_t kTile = kVectors * V::kLanes;
  for (size_t tile = first; tile < last; ++tile) {
    const size_t begin = tile * kTile, outputs = m.n - begin < kTile ? m.n - begin : kTile;
    alignas(64) int32_t code_sums[kTile];
    alignas(64) float scales[kTile] = {}, bias[kTile] = {}, result[kTile];
    unpack_tile<V>(m, input.width, begin, outputs, codes, code_sums);
    std::memcpy(scales, m.scales + begin, outputs * sizeof(float));
    if (m.bias != nullptr) std::memcpy(bias, m.bias + begin, outputs * sizeof(float));
    const size_t ahead = begin + kAhead * kTile < m.n ? begin + kAhead * kTile : begin;
    for (size_t row = 0; row < input.rows; row += V::kRows) {
      const size_t rows = input.rows - row < V::kRows ? input.rows - row : V::kRows;
      // A line of every row of the matrix: no processor foresees that. The columns' share of these rows.
      for (size_t k = m.k * row / input.rows; k < m.k * (row + rows) / input.rows; ++k) {
        __builtin_prefetch(m.codes + k * m.n + ahead, 0, 2);
      }
      for (size_t r = 0; r < rows; ++r) {  // where the result goes, as if it had to be read
        const float* line = out + (row + r) * m.n + begin;
        for (size_t i = 0; i < outputs; i += kLine) __builtin_prefetch(line + i, 1, 3);
      }
      typename V::Ints products[V::kRows][kVectors];
      multiply_some<V>(rows, input, codes, row, products);
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

}  // namespace
}  // namespace blip2rt
