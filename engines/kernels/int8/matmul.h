// Multiplies float rows by a matrix of 8-bit weights. Kernels read the weights where they are, typically in a mapped
// file, and keep no packed copy.
#pragma once

#include "base/tensor.h"

namespace blip2rt {

constexpr size_t kInt8MaxDepth = 65536;  // the largest K: 255 * 128 * K fits into an int32 sum

// An (N, K) matrix, w = scale * code, with a scale per output.
struct Int8Matrix {
  size_t n, k;
  const int8_t* codes;  // (N, K)
  const float* scales;  // (N)
  const float* bias;    // (N) or nullptr
};

// Quantized rows of activations, x = scale * (value - zero), with a scale per row: |error| <= scale / 2. Values are
// uint8, or wider or signed if the kernel needs that.
struct Int8Input {
  size_t rows, width;  // at least one row; width: Int8Kernel::row_stride(K)
  uint8_t* values;     // Int8Kernel::values_size(rows, K) bytes, 64-byte aligned, in the kernel's order
  float* scales;       // (rows); NaN if the row has a non-finite value
  int32_t* zeros;      // (rows)
};

// An implementation for one instruction set. It computes `tile` outputs together, and up to tiles_per_call() tiles per
// call: as many as fit into a core's cache.
struct Int8Kernel {
  static constexpr size_t kCacheLineBytes = 64;
  static constexpr size_t kRows = 16;  // rows quantized together
  const char* name;
  size_t tile, max_tiles, value_size;  // value_size: bytes of a value, and of an unpacked code
  size_t (*tile_scratch_size)(size_t k);
  // Quantizes up to kRows rows from `first` on, which is a multiple of kRows.
  void (*quantize)(const float* x, size_t first, size_t rows, size_t k, const Int8Input& input);
  // Computes outputs first * tile to last * tile of `out` (rows, N), at most tiles_per_call() tiles. scratch:
  // scratch_size() bytes, 64-byte aligned.
  void (*multiply)(const Int8Matrix& matrix, const Int8Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch);

  // The bytes of a row: an odd number of cache lines, because rows a power of two apart would evict each other.
  size_t row_stride(size_t k) const {
    return (round_up_to_line(k * value_size) / kCacheLineBytes | 1) * kCacheLineBytes;
  }
  static size_t round_up_to_line(size_t k) { return (k + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes; }
  size_t values_size(size_t rows, size_t k) const { return product_of(rows + kRows - 1, row_stride(k)); }
  size_t tiles_per_call(size_t k) const;
  size_t scratch_size(size_t k) const { return tiles_per_call(k) * tile_scratch_size(k); }
};

// Returns the best kernel for this processor, or the named one for tests: "amx", "avx512", "avxvnni", "avx2", "sse41",
// "dotprod" or "neon". Returns nullptr where the processor lacks the instructions.
const Int8Kernel* int8_kernel(const char* name = nullptr);

}  // namespace blip2rt
