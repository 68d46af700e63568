#include "base/parse.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <system_error>

#include "base/error.h"
#include "base/utf8.h"

namespace blip2rt {

std::vector<std::pair<std::string, std::string>> read_pairs(const char* const* pairs) {
  std::vector<std::pair<std::string, std::string>> read;
  for (; pairs != nullptr && *pairs != nullptr; pairs += 2) {
    if (pairs[1] == nullptr) {
      throw Error(ErrorKind::kArgument,
                  "the option " + quoted(pairs[0]) + " has no value: give keys and values in turn");
    }
    read.emplace_back(pairs[0], pairs[1]);
  }
  return read;
}

std::optional<bool> parse_flag(const std::string& text) {
  if (text == "true") return true;
  return text == "false" ? std::optional<bool>(false) : std::nullopt;
}

std::optional<int64_t> parse_whole(const std::string& text, int64_t low, int64_t high) {
  const size_t sign = text.empty() || text[0] != '-' ? 0 : 1;
  if (text.size() == sign || text.find_first_not_of("0123456789", sign) != std::string::npos) return std::nullopt;
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && value >= low && value <= high ? std::optional<int64_t>(value) : std::nullopt;
}

std::string number_text(double number) {
  char digits[32];
  for (int precision = 6; precision <= 17; ++precision) {
    std::snprintf(digits, sizeof digits, "%.*g", precision, number);
    if (std::strtod(digits, nullptr) == number) break;
  }
  std::string text;
  for (const char c : std::string_view(digits)) {  // the decimal point of the locale may be another one, of many bytes
    const bool is_kept = std::string_view("0123456789+-abcdefghijklmnopqrstuvwxyz").find(c) != std::string_view::npos;
    if (is_kept || text.empty() || text.back() != '.') text += is_kept ? c : '.';
  }
  return text;
}

std::vector<std::string_view> parts_of(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; (begin = text.find_first_not_of(separator, begin)) != std::string_view::npos;) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  return parts;
}

bool is_listed(std::string_view text, std::string_view list, char separator) {
  for (size_t at = 0; !text.empty() && (at = list.find(text, at)) != std::string_view::npos; ++at) {
    const size_t end = at + text.size();
    if ((at == 0 || list[at - 1] == separator) && (end == list.size() || list[end] == separator)) {
      return text.find(separator) == std::string_view::npos;
    }
  }
  return false;
}

std::string shown(const std::string& value) { return parse_number(value) ? value : quoted(value); }

std::optional<double> parse_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

}  // namespace blip2rt
