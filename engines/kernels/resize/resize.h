// Resizes RGB pictures, bit for bit like Pillow: a horizontal pass, then a vertical one, each a weighted sum of the
// neighbouring pixels rounded to 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/resize/kernel.h"

namespace blip2rt {

// The inputs that each output of an axis reads, and their weights.
struct Windows {
  size_t taps;
  std::vector<size_t> first;
  std::vector<int32_t> weights;  // (outputs, taps), or packed by a kernel
};

struct Size {
  size_t width, height;
};

// Resizes one picture, whose rows are added from the top in strips of any height.
class Resize {
 public:
  // Throws std::invalid_argument for a filter that is not Pillow's "box", "bilinear", "hamming", "bicubic" or
  // "lanczos", and for a size without pixels.
  Resize(const std::string& filter, Size from, Size to, const ResizeKernel& kernel = *resize_kernel());

  Size to() const { return to_; }
  size_t row_bytes() const { return 4 * from_.width; }
  size_t rows_left() const { return from_.height - rows_; }

  // Adds rows of RGBX, at most `rows_left`.
  void add(const uint8_t* rgbx, size_t rows);

  // Writes (height, width, 3), after all rows were added.
  void write(uint8_t* rgb) const;

 private:
  Size from_, to_;
  const ResizeKernel* kernel_;
  Windows horizontal_, vertical_;
  size_t stride_;                      // bytes of a row of `intermediate_`
  std::vector<uint8_t> intermediate_;  // output of the horizontal pass
  size_t rows_ = 0;
};

}  // namespace blip2rt
