// The arithmetic of resize.h, which each instruction set has its own of. Knows neither filters nor pictures.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// A pixel is four bytes: red, green, blue and one that means nothing. An output reads `taps` pixels that follow each
// other, and is the sum of their products with weights, rounded. Weights are fixed-point numbers.
struct ResizeKernel {
  static constexpr int kFraction = 22;    // bits of a weight behind the point
  static constexpr size_t kAligned = 32;  // rows that `down` reads are so many bytes, or a multiple

  const char* name;
  size_t pixels;  // that `across` reads at a time: its taps are a multiple of it
  size_t packed;  // numbers that hold the weights of so many pixels

  // Writes the weights of `pixels` taps as `across` reads them.
  void (*pack)(const int32_t* weights, int32_t* to);

  // Computes a row of outputs for each row of inputs. Output i reads from first[i] on, with the packed weights of all
  // taps. Strides are in bytes.
  void (*across)(const size_t* first, const int32_t* weights, size_t outputs, size_t taps, const uint8_t* from,
                 size_t stride, size_t rows, uint8_t* to, size_t to_stride);

  // Computes one row from `taps` rows below each other.
  void (*down)(const int32_t* weights, size_t taps, const uint8_t* from, size_t stride, uint8_t* to);
};

// Returns the best kernel of this processor, or the one of that name, or null.
const ResizeKernel& resize_kernel();
const ResizeKernel* resize_kernel(const char* name);

}  // namespace blip2rt
