// Products of float rows and a matrix whose weights are 8-bit integers, read where they lie: nothing is packed for
// good, so that a mapped file is all the memory that the weights take. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

constexpr size_t kInt8MostDepth = 65536;  // of K: 255 * 128 * K fits the int32 of a sum

// Weights of N outputs, w = scale * code with a scale for each.
struct Int8Matrix {
  size_t n, k;
  const int8_t* codes;  // (N, K): what an output reads lies together
  const float* scales;  // (N)
  const float* bias;    // (N) or nullptr
};

// Rows of activations as uint8 (or int8, where the kernel wants that), x = scale * (value - zero), a scale for each
// row: |error| <= scale / 2.
struct Int8Input {
  size_t rows, width;  // at least one row; width: Int8Kernel::width_of(K)
  uint8_t* values;     // Int8Kernel::values_size(rows, K) at a multiple of 64, in the order that the kernel wants
  float* scales;       // (rows); NaN where the row has a value that is not finite
  int32_t* zeros;      // (rows)
};

// One way to do it for the processor that runs. `tile` outputs are computed at once, up to tiles_together() tiles in a
// call, as many as a core's cache holds.
struct Int8Kernel {
  static constexpr size_t kLine = 64;  // bytes
  static constexpr size_t kRows = 16;  // that are quantized at once
  const char* name;
  size_t tile, together;
  size_t (*scratch_of_tile)(size_t k);
  // Up to kRows rows from `first` on, which is a multiple of it.
  void (*quantize)(const float* x, size_t first, size_t rows, size_t k, const Int8Input& input);
  // Outputs first * tile to last * tile of (rows, N) `out`, at most tiles_together(). scratch: scratch_size() bytes at
  // a multiple of 64.
  void (*multiply)(const Int8Matrix& matrix, const Int8Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch);

  // An odd number of the cache's lines: rows that lie a power of two apart would fall on each other there.
  static size_t width_of(size_t k) { return (whole_lines(k) / kLine | 1) * kLine; }
  static size_t whole_lines(size_t k) { return (k + kLine - 1) / kLine * kLine; }
  static size_t values_size(size_t rows, size_t k) { return (rows + kRows - 1) / kRows * kRows * width_of(k); }
  size_t tiles_together(size_t k) const;
  size_t scratch_size(size_t k) const { return tiles_together(k) * scratch_of_tile(k); }
};

// The best for this processor; nullptr where it has none of the instructions that we know how to use.
const Int8Kernel* int8_kernel();

// By name ("amx", "avx512", "avxvnni", "neon"), for tests; nullptr where the processor lacks it.
const Int8Kernel* int8_kernel(const char* name);

}  // namespace blip2rt
