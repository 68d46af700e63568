// Text for messages, trusted or not: names in files, and messages of ONNX Runtime that quote them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace blip2rt {

// Returns whether `text` is valid UTF-8.
bool is_utf8(std::string_view text);

// Returns `text` as a single line of UTF-8: control characters become spaces, invalid bytes become '?'.
std::string single_line(std::string_view text);

// Returns a name in quotes, as a single line, truncated if it is long.
std::string quoted(std::string_view name);

// Returns at most 100 bytes of valid UTF-8, without half a character.
std::string shortened(std::string_view text);

// The same in quotes. Control characters stay: callers that print a message escape them.
std::string in_quotes(std::string_view text);

// A number for people: 50,000,000.
std::string with_commas(uint64_t number);

}  // namespace blip2rt
