// Moves, blends and resizes pixels.
#include "media/picture.h"

#include <algorithm>
#include <cstring>

namespace blip2rt {
namespace {

constexpr int kTransposed = 5;  // of EXIF's orientations

// Pillow's "nearest", which adds up positions and so repeats their rounding.
std::vector<size_t> nearest_positions(size_t from, size_t to) {
  const double step = static_cast<double>(from) / static_cast<double>(to);
  std::vector<size_t> positions;
  double position = step * 0.5;
  for (size_t i = 0; i < to; ++i, position += step) {
    positions.push_back(std::min(static_cast<size_t>(position), from - 1));
  }
  return positions;
}

std::vector<uint8_t> resize_nearest(const Picture& picture, Size to) {
  const std::vector<size_t> columns = nearest_positions(picture.size.width, to.width);
  std::vector<uint8_t> rgb;
  rgb.reserve(3 * to.width * to.height);
  for (const size_t y : nearest_positions(picture.size.height, to.height)) {
    const uint8_t* row = picture.row(y);
    for (const size_t x : columns) rgb.insert(rgb.end(), row + 4 * x, row + 4 * x + 3);
  }
  return rgb;
}

std::vector<uint8_t> resize_rows_first(const Picture& picture, Size to, const std::string& filter) {
  constexpr size_t kStripPixels = 1 << 17;  // they fit the processor's cache
  Resize resize(filter, picture.size, to);
  const size_t rows = std::max<size_t>(1, kStripPixels / picture.size.width);
  for (size_t y = 0; y < picture.size.height; y += rows) {
    resize.add(picture.row(y), std::min(rows, picture.size.height - y));
  }
  std::vector<uint8_t> rgb(3 * to.width * to.height);
  resize.write(rgb.data());
  return rgb;
}

// Whether Pillow 13 resizes vertically first, which rounds differently: if that leaves fewer pixels to work on.
bool is_vertical_first(Size from, Size to) {
  const auto lost = [](size_t before, size_t after) {
    return static_cast<int64_t>(before) - static_cast<int64_t>(after);
  };
  return lost(from.height, to.height) > std::max<int64_t>(0, 2 * lost(from.width, to.width));
}

}  // namespace

void lay_on_white(uint8_t* rgba, size_t count) {
  constexpr uint32_t kBits = 7, kRound = 0x80u << kBits;  // of Pillow's fixed point
  for (uint8_t* end = rgba + 4 * count; rgba != end; rgba += 4) {
    const uint32_t alpha = rgba[3] << kBits, rest = (255u << kBits) - alpha;
    for (int channel = 0; channel < 3; ++channel) {
      const uint32_t sum = rgba[channel] * alpha + 255 * rest + kRound;
      rgba[channel] = static_cast<uint8_t>(((sum >> 8) + sum) >> 8 >> kBits);
    }
  }
}

Picture turned(const Picture& picture, int orientation) {
  const bool swaps = orientation >= kTransposed;
  const size_t width = picture.size.width, height = picture.size.height;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  Picture result(swaps ? height : width, swaps ? width : height);
  for (size_t y = 0; y < result.size.height; ++y) {
    uint8_t* to = result.row(y);
    for (size_t x = 0; x < result.size.width; ++x, to += 4) {
      const size_t column = swaps ? y : x, row = swaps ? x : y;
      const uint8_t* from = picture.row(from_bottom ? height - 1 - row : row);
      std::memcpy(to, from + 4 * (from_right ? width - 1 - column : column), 4);
    }
  }
  return result;
}

std::vector<uint8_t> resize(const Picture& picture, Size to, const std::string& filter) {
  if (filter == "nearest") return resize_nearest(picture, to);
  if (!is_vertical_first(picture.size, to)) return resize_rows_first(picture, to, filter);
  const std::vector<uint8_t> columns = resize_rows_first(turned(picture, kTransposed), {to.height, to.width}, filter);
  std::vector<uint8_t> rgb(columns.size());
  for (size_t y = 0; y < to.height; ++y) {
    for (size_t x = 0; x < to.width; ++x)
      std::memcpy(&rgb[3 * (y * to.width + x)], &columns[3 * (x * to.height + y)], 3);
  }
  return rgb;
}

}  // namespace blip2rt
