// The interface of a resizing kernel: one implementation of the horizontal and the vertical pass.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// A pixel is four bytes: red, green, blue and an unused one. An output is the rounded weighted sum of `taps`
// consecutive pixels. Weights are fixed-point numbers.
struct ResizeKernel {
  static constexpr int kFractionBits = 22;     // fraction bits of a weight
  static constexpr size_t kRowAlignment = 32;  // bytes; intermediate rows are a multiple of it

  const char* name;
  size_t pixels;          // read at a time by `horizontal`, whose taps are a multiple of it
  size_t packed_weights;  // int32 values that hold the weights of `pixels` taps

  // Packs the weights of `pixels` taps for `horizontal`.
  void (*pack)(const int32_t* weights, int32_t* to);

  // Computes a row of outputs for each row of inputs. Output i reads its taps from pixel first[i] on. Strides are in
  // bytes.
  void (*horizontal)(const size_t* first, const int32_t* weights, size_t outputs, size_t taps, const uint8_t* from,
                     size_t stride, size_t rows, uint8_t* to, size_t to_stride);

  // Computes one row from `taps` consecutive rows.
  void (*vertical)(const int32_t* weights, size_t taps, const uint8_t* from, size_t stride, uint8_t* to);
};

// Returns the best kernel for this processor, or the kernel "avx2", "neon" or "plain" for tests. Returns nullptr where
// the processor lacks its instructions.
const ResizeKernel* resize_kernel(const char* name = nullptr);

}  // namespace blip2rt
