// Resizes RGB pictures as Pillow does, to the last bit: each output is a weighted sum of the inputs around it, across
// first and then down, rounded to 8 bits after each. Knows no file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/resize/kernel.h"

namespace blip2rt {

// How the outputs of an axis read its inputs (ResizeKernel).
struct Windows {
  size_t taps;
  std::vector<size_t> first;
  std::vector<int32_t> weights;  // (outputs, taps), or what a kernel packs of them
};

struct Size {
  size_t width, height;
};

// One picture on its way. Its rows are added from the top, as many at a time as there are.
class Resize {
 public:
  // Throws std::invalid_argument for a filter that is not Pillow's "box", "bilinear", "hamming", "bicubic" or
  // "lanczos", and for a size without pixels.
  Resize(const std::string& filter, Size from, Size to, const ResizeKernel& kernel = resize_kernel());

  Size to() const { return to_; }
  size_t row_bytes() const { return 4 * from_.width; }
  size_t rows_left() const { return from_.height - rows_; }

  // Adds rows of RGBX, `rows_left` at most.
  void add(const uint8_t* rgbx, size_t rows);

  // Writes (height, width, 3) when all rows were added.
  void write(uint8_t* rgb) const;

 private:
  Size from_, to_;
  const ResizeKernel* kernel_;
  Windows across_, down_;
  size_t stride_;                 // bytes of a row of `between_`
  std::vector<uint8_t> between_;  // what `across` made
  size_t rows_ = 0;
};

}  // namespace blip2rt
