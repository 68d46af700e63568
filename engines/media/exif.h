// The orientation of a picture in its metadata, as Pillow reads it. Metadata are untrusted: damaged ones say nothing.
#pragma once

#include <string>

namespace blip2rt {

struct Metadata {
  std::string exif;  // a TIFF structure, with or without "Exif\0\0" before it
  std::string xmp;   // read if EXIF has no orientation
};

// Returns 1 to 8; 1 if nothing is said.
int orientation_of(const Metadata& metadata);

}  // namespace blip2rt
