// Takes a picture's rows from Python and returns the resized picture. Knows no file.
#pragma once

#include <nanobind/nanobind.h>

#include <string>
#include <utility>

namespace blip2rt {

// Resizes a picture whose rows of RGBX come as strips of bytes, from the top. Sizes are (width, height). Releases the
// GIL between the strips.
nanobind::object resize(const nanobind::typed<nanobind::iterable, nanobind::bytes>& strips,
                        std::pair<size_t, size_t> from, std::pair<size_t, size_t> to, const std::string& filter);

}  // namespace blip2rt
