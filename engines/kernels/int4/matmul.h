// Products of float rows and a matrix whose weights are 4-bit integers in blocks, read where they lie: nothing is
// packed or copied, so that a mapped file is all the memory that the weights take. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// (N, K) weights in blocks of `block` along K, w = scale * (code - zero_point): the layout of
// com.microsoft::MatMulNBits.
struct Int4Matrix {
  size_t n, k, block;          // block is 32, 64 or 128
  const uint8_t* codes;        // (N, blocks, block / 2), the first of two codes in the low half
  const uint16_t* scales;      // (N, blocks), float16
  const uint8_t* zero_points;  // (N, ceil(blocks / 2)), packed like the codes

  size_t blocks() const { return (k + block - 1) / block; }
};

// Rows of activations as int8, a scale for each block: |error| <= scale / 2 = largest / 254. With `low` as 16 bits in
// two planes, value = 256 * values + low: |error| <= largest / 65024.
struct Int4Input {
  // What a register of codes is unpacked to, at most: for so many more values each row has room.
  static constexpr size_t kRoom = 128;
  static constexpr size_t kFewNumbers = 24;  // a block, at most, that this needs
  static constexpr size_t kTile = 16;        // rows that may be read together: so many have room

  size_t rows;  // at least one
  // (rows, blocks * block), of every 8 the even ones before the odd ones, as codes lie; of few rows: of as many as a
  // register of codes holds, each row rounded up to that.
  int8_t* values;
  int8_t* low;    // the same, or nullptr
  float* scales;  // (rows, blocks); NaN where the block has a value that is not finite
  float* sums;    // (rows, blocks): scale * sum of the values

  static size_t plane_size(const Int4Matrix& matrix, size_t rows) {
    return (rows + kTile - 1) / kTile * kTile * (matrix.blocks() * matrix.block + kRoom);
  }
};

// One way to do it for the processor that runs. `tile` outputs are computed at once.
struct Int4Kernel {
  const char* name;
  size_t tile;
  void (*quantize)(const float* x, size_t row, const Int4Matrix& matrix, const Int4Input& input);
  // Outputs first * tile to last * tile of (rows, N) `out`. scratch: scratch_size() bytes at a multiple of 64.
  void (*multiply)(const Int4Matrix& matrix, const Int4Input& input, float* out, size_t first, size_t last,
                   uint8_t* scratch);

  size_t scratch_size(const Int4Matrix& matrix) const;
};

// The best for this processor; nullptr where it has none of the instructions that we know how to use.
const Int4Kernel* int4_kernel();

// By name ("amx", "avx512", "avxvnni", "avx2", "neon"), for tests; nullptr where the processor lacks it.
const Int4Kernel* int4_kernel(const char* name);

}  // namespace blip2rt
