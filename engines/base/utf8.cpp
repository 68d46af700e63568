// Validates and sanitizes UTF-8.
#include "base/utf8.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace blip2rt {
namespace {

constexpr size_t kMost = 100;  // bytes of a name that a message shows

// Returns the length in bytes of the character at `i`, or 0 if it is invalid.
size_t size_at(std::string_view text, size_t i) {
  const auto byte = [&](size_t at) { return at < text.size() ? static_cast<uint8_t>(text[at]) : uint8_t{0}; };
  const uint8_t first = byte(i);
  const size_t size = first < 0x80 ? 1 : first >> 5 == 6 ? 2 : first >> 4 == 14 ? 3 : first >> 3 == 30 ? 4 : 0;
  if (size < 2) return size;
  if (size == 2) return first >= 0xC2 && byte(i + 1) >> 6 == 2 ? 2 : 0;
  uint32_t code = first & (0x7Fu >> size);
  for (size_t more = 1; more < size; ++more) {
    if (byte(i + more) >> 6 != 2) return 0;
    code = code << 6 | (byte(i + more) & 63u);
  }
  constexpr uint32_t kSmallest[] = {0, 0, 0, 0x800, 0x10000};
  const bool surrogate = code >= 0xD800 && code < 0xE000;
  return code < kSmallest[size] || code > 0x10FFFF || surrogate ? 0 : size;
}

}  // namespace

bool is_utf8(std::string_view text) {
  constexpr uint64_t kHighBits = 0x8080808080808080;
  for (size_t i = 0, size = 0; i < text.size(); i += size) {
    uint64_t eight = kHighBits;
    if (text.size() - i >= sizeof eight) std::memcpy(&eight, text.data() + i, sizeof eight);
    eight &= kHighBits;
    size = eight == 0 ? sizeof eight : static_cast<size_t>(__builtin_ctzll(eight)) / 8;  // characters of ASCII
    if (size == 0) size = size_at(text, i);
    if (size == 0) return false;
  }
  return true;
}

std::string single_line(std::string_view text) {
  std::string line;
  for (size_t i = 0; i < text.size();) {
    const size_t size = size_at(text, i);
    const auto first = static_cast<uint8_t>(text[i]);
    if (size == 0) {
      line += '?';
    } else if (first < 0x20 || first == 0x7F) {
      if (!line.empty() && line.back() != ' ') line += ' ';
    } else {
      line += text.substr(i, size);
    }
    i += size == 0 ? 1 : size;
  }
  while (!line.empty() && line.back() == ' ') line.pop_back();
  return line;
}

std::string quoted(std::string_view name) {
  return "'" + single_line(name.substr(0, kMost)) + (name.size() > kMost ? "...'" : "'");
}

std::string shortened(std::string_view text) {
  size_t end = std::min(text.size(), kMost);
  while (end < text.size() && end > 0 && (static_cast<uint8_t>(text[end]) & 0xC0) == 0x80) --end;
  return std::string(text.substr(0, end)) + (end < text.size() ? "..." : "");
}

std::string in_quotes(std::string_view text) { return "'" + shortened(text) + "'"; }

std::string with_commas(uint64_t number) {
  std::string digits = std::to_string(number);
  for (size_t end = digits.size(); end > 3; end -= 3) digits.insert(end - 3, ",");
  return digits;
}

}  // namespace blip2rt
