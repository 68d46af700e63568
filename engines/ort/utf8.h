// Text that strangers wrote: names in graphs, and messages of ONNX Runtime that quote them.
#pragma once

#include <string>
#include <string_view>

namespace blip2rt {

// Returns whether `text` is UTF-8.
bool is_utf8(std::string_view text);

// Returns `text` as one line of UTF-8: control characters become spaces, bytes that are no UTF-8 become '?'.
std::string single_line(std::string_view text);

// Returns a name in quotes, as one line, cut where it is long.
std::string quoted(std::string_view name);

}  // namespace blip2rt
