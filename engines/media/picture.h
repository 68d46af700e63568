// A decoded picture in memory: turned upright, laid on white, resized. Knows no file formats.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/resize/resize.h"

namespace blip2rt {

// RGBX, 4 bytes a pixel, without padding.
struct Picture {
  Picture() = default;
  Picture(size_t width, size_t height) : size{width, height}, pixels(new uint8_t[4 * width * height]) {}

  uint8_t* row(size_t y) { return pixels.get() + 4 * size.width * y; }
  const uint8_t* row(size_t y) const { return pixels.get() + 4 * size.width * y; }

  Size size{0, 0};
  std::unique_ptr<uint8_t[]> pixels;
};

// Lays RGBA on white, in place, as Pillow's alpha_composite does.
void lay_on_white(uint8_t* rgba, size_t count);

// Returns the picture as EXIF's orientation (2 to 8) says it is seen.
Picture turned(const Picture& picture, int orientation);

// Returns (height, width, 3), equal to Pillow 13's resize. `filter` is the name of Pillow's.
std::vector<uint8_t> resize(const Picture& picture, Size to, const std::string& filter);

}  // namespace blip2rt
