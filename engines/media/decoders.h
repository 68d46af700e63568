// The image formats: bytes -> pixels and metadata. image.cpp chooses among them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

#include "media/exif.h"
#include "media/picture.h"

namespace blip2rt {

// What is wrong with an image, in one line with the fix.
struct ImageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct ImageLimits {
  uint64_t max_pixels = 50'000'000;  // width times height
  size_t min_side = 0;               // a JPEG is shrunk, but no side below this; 0: only to fit max_pixels
};

struct DecodedImage {
  Picture picture;  // on white
  Metadata metadata;
};

// Throws ImageError if a header's size exceeds the limits. Decoders call it before they allocate pixels. `name` of the
// image begins the message.
void check_size(const std::string& name, Size size, Size decoded, const ImageLimits& limits);

// Throws ImageError for damaged data, and std::bad_alloc.
DecodedImage decode_jpeg(std::string_view bytes, const std::string& name, const ImageLimits& limits);
DecodedImage decode_png(std::string_view bytes, const std::string& name, const ImageLimits& limits);
DecodedImage decode_webp(std::string_view bytes, const std::string& name, const ImageLimits& limits);

}  // namespace blip2rt
