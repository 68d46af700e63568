// Products of float rows with a matrix of 8-bit weights. Reads weights where they lie and keeps no packed copy: a
// mapped file is all the memory that they take. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

constexpr size_t kInt8MostDepth = 65536;  // the largest K: 255 * 128 * K fits the int32 of a sum

// (N, K) weights, w = scale * code, with a scale for each output.
struct Int8Matrix {
  size_t n, k;
  const int8_t* codes;  // (N, K)
  const float* scales;  // (N)
  const float* bias;    // (N) or nullptr
};

// Rows of activations in uint8 (or wider, or in int8, where the kernel wants that), x = scale * (value - zero), with a
// scale for each row: |error| <= scale / 2.
struct Int8Input {
  size_t rows, width;  // at least one row; width: Int8Kernel::width_of(K)
  uint8_t* values;     // Int8Kernel::values_size(rows, K) at a multiple of 64, in the order that the kernel wants
  float* scales;       // (rows); NaN where the row has a value that is not finite
  int32_t* zeros;      // (rows)
};

// An implementation for one instruction set. `tile` outputs are computed together, in up to tiles_together() tiles a
// call: as many as a core's cache holds.
struct Int8Kernel {
  static constexpr size_t kLine = 64;  // bytes
  static constexpr size_t kRows = 16;  // rows that are quantized together
  const char* name;
  size_t tile, together, value_size;  // value_size: bytes of a value, and of a code as it is multiplied
  size_t (*scratch_of_tile)(size_t k);
  // Quantizes up to kRows rows from `first` on, a multiple of kRows.
  void (*quantize)(const float* x, size_t first, size_t rows, size_t k, const Int8Input& input);
  // Computes outputs first * tile to last * tile of `out` (rows, N), at most tiles_together(). scratch: scratch_size()
  // bytes at a multiple of 64.
  void (*multiply)(const Int8Matrix& matrix, const Int8Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch);

  // Bytes of a row: an odd number of cache lines. Rows that lie a power of two apart would take each other's lines.
  size_t width_of(size_t k) const { return (whole_lines(k * value_size) / kLine | 1) * kLine; }
  static size_t whole_lines(size_t k) { return (k + kLine - 1) / kLine * kLine; }
  size_t values_size(size_t rows, size_t k) const { return (rows + kRows - 1) / kRows * kRows * width_of(k); }
  size_t tiles_together(size_t k) const;
  size_t scratch_size(size_t k) const { return tiles_together(k) * scratch_of_tile(k); }
};

// The best kernel for this processor. Returns nullptr where it has none of the instructions.
const Int8Kernel* int8_kernel();

// The kernel "amx", "avx512", "avxvnni", "avx2" or "neon", for tests. Returns nullptr where the processor lacks its
// instructions.
const Int8Kernel* int8_kernel(const char* name);

}  // namespace blip2rt
