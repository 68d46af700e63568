// The arithmetic of kernel.h, written once for all instruction sets. V holds the instructions of one: a register of
// kPixels pixels, each as four numbers of 32 bits. Everything has internal linkage, because each file compiles it for
// another processor; for the same reason it uses no templates of the standard library.
#pragma once

#include "kernels/resize/kernel.h"

namespace blip2rt {
namespace {

// Computes R rows: a weight is read once for them.
template <class V, size_t R>
void rows_across(const size_t* first, const int32_t* weights, size_t outputs, size_t taps, const uint8_t* from,
                 size_t stride, uint8_t* to, size_t to_stride) {
  constexpr size_t kNumbers = 4 * V::kPixels;
  for (size_t i = 0; i < outputs; ++i, weights += 4 * taps) {
    const uint8_t* inputs = from + 4 * first[i];
    typename V::Ints sums[R];
    for (size_t row = 0; row < R; ++row) sums[row] = V::zero();
    for (size_t k = 0; k < 4 * taps; k += kNumbers) {
      const typename V::Ints weight = V::load(weights + k);
      for (size_t row = 0; row < R; ++row) sums[row] = V::add_product(sums[row], inputs + row * stride + k, weight);
    }
    for (size_t row = 0; row < R; ++row) V::store_pixel(to + row * to_stride + 4 * i, sums[row]);
  }
}

template <class V>
void across(const size_t* first, const int32_t* weights, size_t outputs, size_t taps, const uint8_t* from,
            size_t stride, size_t rows, uint8_t* to, size_t to_stride) {
  constexpr size_t kRows = 4;
  for (; rows >= kRows; rows -= kRows, from += kRows * stride, to += kRows * to_stride) {
    rows_across<V, kRows>(first, weights, outputs, taps, from, stride, to, to_stride);
  }
  for (; rows != 0; --rows, from += stride, to += to_stride) {
    rows_across<V, 1>(first, weights, outputs, taps, from, stride, to, to_stride);
  }
}

template <class V>
void down(const int32_t* weights, size_t taps, const uint8_t* from, size_t stride, uint8_t* to) {
  constexpr size_t kNumbers = 4 * V::kPixels, kAcross = 4;
  static_assert(ResizeKernel::kAligned % (kAcross * kNumbers) == 0);
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

}  // namespace
}  // namespace blip2rt
