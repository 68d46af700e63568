// Image -> RGB pixels for a model: reads files, recognises formats, checks limits. The C library's counterpart of
// blip2rt.image, whose pixels and messages it has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "media/decoders.h"

namespace blip2rt {

// What a model reads.
struct ImageTarget {
  Size size;
  std::string filter;  // Pillow's name
};

struct ImageRules {
  uint64_t max_pixels = 50'000'000;
  bool scaled_jpeg = false;  // decode a JPEG at a fraction of its size, but at least twice the target's
};

inline constexpr uint64_t kMostPixels = 178'956'970;  // that max_pixels may be
inline constexpr size_t kMaxSide = 65'535;

enum class PixelFormat { kRgb = 0, kBgr = 1, kRgba = 2, kBgra = 3 };

// Return (height, width, 3), resized. Throw ImageError, or std::bad_alloc with nothing left to decode.
std::vector<uint8_t> prepare_file(const std::string& path, const ImageTarget& target, const ImageRules& rules);
std::vector<uint8_t> prepare_bytes(std::string_view bytes, const ImageTarget& target, const ImageRules& rules);

// `pixels`: the top row; `stride`: bytes to the next row, which may be negative.
std::vector<uint8_t> prepare_pixels(const uint8_t* pixels, Size size, ptrdiff_t stride, PixelFormat format,
                                    const ImageTarget& target);

}  // namespace blip2rt
