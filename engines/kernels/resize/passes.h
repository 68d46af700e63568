// The resizing passes as templates over an instruction set V: Ints is a register of int32, Sums collects the products
// of kPixels pixels with kPackedWeights packed weights.
//
// Everything has internal linkage and uses no templates of the standard library, because each including file compiles
// it for another processor.
#pragma once

#include "kernels/resize/kernel.h"

namespace blip2rt {
namespace {

// Computes R rows together, so that each weight is loaded once for all of them.
template <class V, size_t R>
void horizontal_rows(const size_t* first, const int32_t* weights, size_t outputs, size_t taps, const uint8_t* from,
                     size_t stride, uint8_t* to, size_t to_stride) {
  for (size_t i = 0; i < outputs; ++i) {
    const uint8_t* inputs = from + 4 * first[i];
    typename V::Sums sums[R];
    for (size_t row = 0; row < R; ++row) sums[row] = V::no_sums();
    for (size_t tap = 0; tap < taps; tap += V::kPixels, inputs += 4 * V::kPixels, weights += V::kPackedWeights) {
      const typename V::Weights loaded = V::weights(weights);
      for (size_t row = 0; row < R; ++row) V::add_products(sums[row], inputs + row * stride, loaded);
    }
    for (size_t row = 0; row < R; ++row) V::store_pixel(to + row * to_stride + 4 * i, sums[row]);
  }
}

template <class V>
void horizontal(const size_t* first, const int32_t* weights, size_t outputs, size_t taps, const uint8_t* from,
                size_t stride, size_t rows, uint8_t* to, size_t to_stride) {
  constexpr size_t kRows = 4;
  for (; rows >= kRows; rows -= kRows, from += kRows * stride, to += kRows * to_stride) {
    horizontal_rows<V, kRows>(first, weights, outputs, taps, from, stride, to, to_stride);
  }
  for (; rows != 0; --rows, from += stride, to += to_stride) {
    horizontal_rows<V, 1>(first, weights, outputs, taps, from, stride, to, to_stride);
  }
}

template <class V>
void vertical(const int32_t* weights, size_t taps, const uint8_t* from, size_t stride, uint8_t* to) {
  constexpr size_t kNumbers = sizeof(typename V::Ints) / sizeof(int32_t), kAcross = 4;
  static_assert(ResizeKernel::kRowAlignment % (kAcross * kNumbers) == 0);
  for (size_t byte = 0; byte < stride; byte += kAcross * kNumbers) {
    typename V::Ints sums[kAcross];
    for (size_t i = 0; i < kAcross; ++i) sums[i] = V::zero();
    for (size_t row = 0; row < taps; ++row) {
      const typename V::Ints weight = V::broadcast(weights[row]);
      const uint8_t* inputs = from + row * stride + byte;
      for (size_t i = 0; i < kAcross; ++i) sums[i] = V::add_product(sums[i], inputs + i * kNumbers, weight);
    }
    for (size_t i = 0; i < kAcross; ++i) V::store(to + byte + i * kNumbers, sums[i]);
  }
}

// Adapts an instruction set that multiplies the four channels of one pixel by one weight.
template <class V>
struct PixelByPixel : V {
  static constexpr size_t kPixels = 1, kPackedWeights = 4;
  using Sums = typename V::Ints;
  using Weights = typename V::Ints;

  static void pack(const int32_t* weights, int32_t* to) {
    for (size_t i = 0; i < kPackedWeights; ++i) to[i] = *weights;
  }
  static Sums no_sums() { return V::zero(); }
  static Weights weights(const int32_t* packed) { return V::load(packed); }
  static void add_products(Sums& sums, const uint8_t* bytes, const Weights& weights) {
    sums = V::add_product(sums, bytes, weights);
  }
};

template <class V>
constexpr ResizeKernel kernel(const char* name) {
  return {name, V::kPixels, V::kPackedWeights, V::pack, horizontal<V>, vertical<V>};
}

}  // namespace
}  // namespace blip2rt
