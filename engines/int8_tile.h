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
constexpr size_t kStrip = 128;  // outputs of the tiles that are unpacked together, at most
constexpr size_t kSoon = 64;    // rows that the cache is
constexpr size_t kLine = 64;    // bytes of a line of it
constexpr size_t kAhead = 2;    // tiles, at least, that the memory is asked for in advance

template <class V>
constexpr size_t kTogether = kStrip / (kVectors * V::kLanes);

// Codes of some tiles side by side, each in the order that it is multiplied in: of every group of 4 rows of the matrix
// the four vectors. Outputs stand as `interleave` leaves them; what is not there is zero. Also sums over K of each
// output's codes. All at once, as rows lie far apart in memory.
template <class V, size_t Tiles = kTogether<V>>
void unpack_tiles(size_t tiles, const Int8Matrix& m, size_t width, size_t begin, uint8_t* to, int32_t* sums) {
  if constexpr (Tiles > 1) {
    if (tiles < Tiles) return unpack_tiles<V, Tiles - 1>(tiles, m, width, begin, to, sums);
  }
  constexpr size_t kTile = kVectors * V::kLanes;
  typename V::Ints total[Tiles * kVectors];
  for (auto& t : total) t = V::zero_ints();
  for (size_t k = 0; k < width; k += kGroup) {
    for (size_t tile = 0; tile < Tiles; ++tile) {
      const size_t first = begin + tile * kTile, outputs = m.n - first < kTile ? m.n - first : kTile;
      const int8_t* rows[kGroup];
      alignas(64) int8_t copy[kGroup][kTile];
      for (size_t i = 0; i < kGroup; ++i) {
        const int8_t* row = m.codes + (k + i) * m.n + first;
        const bool there = k + i < m.k, whole = there && outputs == kTile;
        if (k + i + kSoon < m.k) __builtin_prefetch(row + kSoon * m.n, 0, 3);
        rows[i] = whole ? row : copy[i];
        if (whole) continue;
        std::memset(copy[i], 0, kTile);
        if (there) std::memcpy(copy[i], row, outputs);
      }
      typename V::Ints quads[kVectors];
      V::interleave(rows, quads);
      for (size_t v = 0; v < kVectors; ++v) {
        V::store(to + (tile * width + k) * kTile + v * sizeof(typename V::Ints), quads[v]);
        total[tile * kVectors + v] = V::dot(total[tile * kVectors + v], V::ones(), quads[v]);
      }
    }
  }
  for (size_t v = 0; v < Tiles * kVectors; ++v) {
    V::store(reinterpret_cast<uint8_t*>(sums + v * V::kLanes), total[v]);
  }
}

// Some lines of memory from the begin of each of some rows on, one after the other.
struct Lines {
  const char* row;
  size_t stride, rows, of_row, line = 0;

  size_t left() const { return rows * of_row - line; }
  const char* next() {
    const char* found = row + line * kLine;
    if (++line == of_row) {
      line = 0, --rows;
      row += stride;
    }
    return found;
  }
};

// What the memory is asked for while some rows are multiplied by a tile: where the result goes, as if it had to be
// read, and a share of the next tiles' codes, of which there are a few in every row of the matrix. No processor
// foresees that.
struct Ahead {
  Lines out, codes;

  size_t left() const { return out.left() + codes.left(); }
  void ask(size_t lines) {
    for (; lines > 0 && out.rows > 0; --lines) __builtin_prefetch(out.next(), 1, 3);
    for (; lines > 0 && codes.rows > 0; --lines) __builtin_prefetch(codes.next(), 0, 2);
  }
};

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
void multiply_some(size_t rows, const Int8Input& input, const uint8_t* codes, size_t row, Ahead& ahead,
                   typename V::Ints (*out)[kVectors]) {
  if constexpr (R > 1) {
    if (rows < R) return multiply_some<V, R - 1>(rows, input, codes, row, ahead, out);
  }
  ahead.ask(ahead.left());
  multiply_rows<V, R>(input, codes, row, out);
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
  const size_t tiles = last - first, begin = first * kTile;
  alignas(64) int32_t code_sums[kTogether<V> * kTile];
  unpack_tiles<V>(tiles, m, input.width, begin, codes, code_sums);
  const size_t next = begin + (tiles < kAhead ? kAhead : tiles) * kTile, ahead = next < m.n ? next : begin;
  const size_t lines = (tiles * kTile + kLine - 1) / kLine, all = input.rows * tiles;
  for (size_t row = 0; row < input.rows; row += V::kRows) {
    const size_t rows = input.rows - row < V::kRows ? input.rows - row : V::kRows;
    for (size_t tile = 0; tile < tiles; ++tile) {
      const size_t done = row * tiles + tile * rows, column = begin + tile * kTile;
      const size_t k = m.k * done / all, count = m.k * (done + rows) / all - k;
      const char* result = reinterpret_cast<const char*>(out + row * m.n + column);
      Ahead asked = {{result, m.n * sizeof(float), rows, kTile * sizeof(float) / kLine},
                     {reinterpret_cast<const char*>(m.codes + k * m.n + ahead), m.n, count, lines}};
      typename V::Ints products[V::kRows][kVectors];
      multiply_some<V>(rows, input, codes + tile * kTile * input.width, row, asked, products);
      finish_rows<V>(m, input, row, rows, column, code_sums + tile * kTile, products, out);
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
  return {name, kVectors * V::kLanes, V::kDepth, kTogether<V>, quantize_row<V>, multiply};
}

}  // namespace
}  // namespace blip2rt
