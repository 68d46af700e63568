// Options that callers of the C library write as strings, numbers as texts, and lists in texts. No locale changes them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace blip2rt {

// Pairs of key and value that end with null; null: none. Throws Error for a key without a value.
std::vector<std::pair<std::string, std::string>> read_pairs(const char* const* pairs);

// Returns a Boolean, a whole number from `low` to `high`, or a number; nothing for any other text. No locale changes
// it.
std::optional<bool> parse_flag(const std::string& text);
std::optional<int64_t> parse_whole(const std::string& text, int64_t low, int64_t high);
std::optional<double> parse_number(const std::string& text);  // finite

// A number with as many digits, at least 6, as tell it from others, in any locale.
std::string number_text(double number);

// The parts of a text, without empty ones.
std::vector<std::string_view> parts_of(std::string_view text, char separator);

// Whether a text is one of the parts of a list.
bool is_listed(std::string_view text, std::string_view list, char separator = ' ');

// A value as a message shows it: a number as it is, other text in quotes.
std::string shown(const std::string& value);

}  // namespace blip2rt
