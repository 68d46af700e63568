// Products of float rows with a matrix of 8-bit weights. Reads weights where they lie and keeps no packed copy: a
// mapped file is all the memory that they take. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

constexpr size_t kInt8MaxDepth = 65536;  // the largest K: 255 * 128 * K fits the int32 of a sum

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
  size_t rows, width;  // at least one row; width: Int8Kernel::row_stride(K)
  uint8_t* values;     // Int8Kernel::values_size(rows, K) at a multiple of 64, in the order that the kernel wants
  float* scales;       // (rows); NaN where the row has a value that is not finite
  int32_t* zeros;      // (rows)
};

// An implementation for one instruction set. `tile` outputs are computed together, in up to tiles_per_call() tiles a
// call: as many as a core's cache holds.
struct Int8Kernel {
  static constexpr size_t kCacheLineBytes = 64;  // bytes
  static constexpr size_t kRows = 16;            // rows that are quantized together
  const char* name;
  size_t tile, max_tiles, value_size;  // value_size: bytes of a value, and of a code as it is multiplied
  size_t (*tile_scratch_size)(size_t k);
  // Quantizes up to kRows rows from `first` on, a multiple of kRows.
  void (*quantize)(const float* x, size_t first, size_t rows, size_t k, const Int8Input& input);
  // Computes outputs first * tile to last * tile of `out` (rows, N), at most tiles_per_call(). scratch: scratch_size()
  // bytes at a multiple of 64.
  void (*multiply)(const Int8Matrix& matrix, const Int8Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch);

  // Bytes of a row: an odd number of cache lines. Rows that lie a power of two apart would take each other's lines.
  size_t row_stride(size_t k) const {
    return (round_up_to_line(k * value_size) / kCacheLineBytes | 1) * kCacheLineBytes;
  }
  static size_t round_up_to_line(size_t k) { return (k + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes; }
  size_t values_size(size_t rows, size_t k) const { return (rows + kRows - 1) / kRows * kRows * row_stride(k); }
  size_t tiles_per_call(size_t k) const;
  size_t scratch_size(size_t k) const { return tiles_per_call(k) * tile_scratch_size(k); }
};

// Returns the best kernel for this processor, or the kernel "amx", "avx512", "avxvnni", "avx2" or "neon" for tests.
// Returns nullptr where the processor lacks the instructions.
const Int8Kernel* int8_kernel(const char* name = nullptr);

}  // namespace blip2rt
