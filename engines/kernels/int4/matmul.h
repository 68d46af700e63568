// Multiplies float rows by a matrix of 4-bit weights in blocks. Kernels read the weights where they are, typically in a
// mapped file, and keep no packed copy.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/tensor.h"

namespace blip2rt {

// An (N, K) matrix in blocks of `block` along K, w = scale * (code - zero_point): the layout of
// com.microsoft::MatMulNBits.
struct Int4Matrix {
  size_t n, k, block;          // block is 32, 64 or 128
  const uint8_t* codes;        // (N, blocks, block / 2), the first of two codes in the low half
  const uint16_t* scales;      // (N, blocks), float16
  const uint8_t* zero_points;  // (N, ceil(blocks / 2)), packed like the codes

  size_t blocks() const { return (k + block - 1) / block; }
};

// Quantized rows of activations, with a scale per block. int8: |error| <= scale / 2 = largest / 254. With `low`, 16
// bits in two planes, 256 * values + low: |error| <= largest / 65024.
struct Int4Input {
  static constexpr size_t kRowPadding = 128;   // values after each row: the most that a register of codes unpacks to
  static constexpr size_t kFewRows = 5;        // most rows that any kernel multiplies output after output
  static constexpr size_t kQuantizeRows = 16;  // rows quantized together; buffers hold a multiple of it

  size_t rows;  // at least one
  // (rows, blocks * block). As in codes, the even values of every 8 precede the odd ones. For few rows the same holds
  // for the values of a whole register of codes, to which rows are padded. AMX uses another order.
  // SSE4.1 has every four values Int4Kernel::value_copies times; SIMD128 has them in 16 bits.
  int8_t* values;
  int8_t* low;    // like values, or nullptr
  float* scales;  // (rows, blocks); NaN if the block has a non-finite value
  float* sums;    // (rows, blocks): scale * sum of the values

  static size_t plane_size(const Int4Matrix& matrix, size_t rows) {
    return product_of(round_up_rows(rows), matrix.blocks() * matrix.block + kRowPadding);
  }
  static size_t scales_size(const Int4Matrix& m, size_t rows) { return product_of(round_up_rows(rows), m.blocks()); }

 private:
  static size_t round_up_rows(size_t rows) { return (rows + kQuantizeRows - 1) / kQuantizeRows * kQuantizeRows; }
};

// An implementation for one instruction set. It computes `tile` outputs together, and `tiles_at_once` tiles with many
// rows.
struct Int4Kernel {
  const char* name;
  size_t tile, tiles_at_once;
  // Quantizes `rows` rows of x from `first` on: at most kQuantizeRows, `first` a multiple of that.
  void (*quantize)(const float* x, size_t first, size_t rows, const Int4Matrix& matrix, const Int4Input& input);
  // Computes outputs first * tile to last * tile of `out` (rows, N). scratch: scratch_size() bytes, 64-byte aligned.
  void (*multiply)(const Int4Matrix& matrix, const Int4Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch);
  size_t value_copies = 1;

  size_t scratch_size(const Int4Matrix& matrix) const;
};

// Returns the best kernel for this processor, or the named one for tests: "amx", "avx512", "avxvnni", "avx2", "sse41",
// "dotprod", "neon" or "simd128". Returns nullptr where the processor lacks the instructions.
const Int4Kernel* int4_kernel(const char* name = nullptr);

}  // namespace blip2rt
