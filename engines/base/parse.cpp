#include "base/parse.h"

#include <charconv>
#include <cmath>
#include <locale>
#include <sstream>
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
  std::ostringstream stream;
  stream.imbue(std::locale::classic());
  stream << number;
  return stream.str();
}

std::string shown(const std::string& value) { return parse_number(value) ? value : quoted(value); }

std::optional<double> parse_number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return std::nullopt;
  return value;
}

}  // namespace blip2rt
