#include <algorithm>
#include <cstring>
#include <memory>

#include "base/unicode.h"
#include "base/utf8.h"
#include "text/parts.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

// Keeps the characters for which `map` returns one other than 0xFFFFFFFF.
constexpr uint32_t kDropped = UINT32_MAX;
constexpr double kMostDecomposed = 4;  // characters that a canonical decomposition makes of one

template <class Map>
void map_characters(Piece& piece, const Map& map) {
  std::string text;
  text.reserve(piece.text.size());
  for (size_t at = 0; at < piece.text.size();) {
    const bool first = at == 0;
    const uint32_t mapped = map(next_character(piece.text, at));
    if (mapped != kDropped) append_utf8(mapped, text);
    if (first && mapped == kDropped) piece.at_start = false;
  }
  piece.text = std::move(text);
}

bool is_chinese(uint32_t c) {
  constexpr uint32_t kRanges[][2] = {{0x4E00, 0x9FFF},   {0x3400, 0x4DBF},   {0x20000, 0x2A6DF}, {0x2A700, 0x2B73F},
                                     {0x2B740, 0x2B81F}, {0x2B920, 0x2CEAF}, {0xF900, 0xFAFF},   {0x2F800, 0x2FA1F}};
  return std::any_of(std::begin(kRanges), std::end(kRanges), [c](const auto& r) { return c >= r[0] && c <= r[1]; });
}

void clean_text(Piece& piece) {
  map_characters(piece, [](uint32_t c) {
    if (c == '\t' || c == '\n' || c == '\r') return uint32_t{' '};
    const Properties properties = properties_of(c);
    if (c == 0 || c == 0xFFFD || properties.control()) return kDropped;
    return properties.space() ? uint32_t{' '} : c;
  });
}

void surround_chinese(Piece& piece) {
  std::string text;
  for (size_t at = 0; at < piece.text.size();) {
    const uint32_t c = next_character(piece.text, at);
    if (is_chinese(c)) text += ' ';
    append_utf8(c, text);
    if (is_chinese(c)) text += ' ';
  }
  piece.text = std::move(text);
}

Normalizer bert_from(Json state) {
  const bool cleans = state["clean_text"].flag(), surrounds = state["handle_chinese_chars"].flag();
  const bool lowers = state["lowercase"].flag(), strips = flag_or(state["strip_accents"], lowers);
  return {[=](Piece& piece) {
    if (cleans) clean_text(piece);
    if (surrounds) surround_chinese(piece);
    if (strips) {
      piece.text = normal_form(piece.text, false);
      map_characters(piece, [](uint32_t c) { return properties_of(c).accent() ? kDropped : c; });
    }
    if (lowers) piece.text = lower_case(piece.text);
  }};
}

// SentencePiece's table of replacements: a double array of 32-bit units, then the texts, each ended by a zero byte.
class Charsmap {
 public:
  explicit Charsmap(std::string_view base64) {
    const std::string bytes = decoded(base64);
    uint32_t size = 0;
    if (bytes.size() < 4) unknown_part("a charsmap without a table");
    std::memcpy(&size, bytes.data(), 4);
    if (size > bytes.size() - 4) unknown_part("a charsmap that is cut off");
    units_.resize(size / 4);
    std::memcpy(units_.data(), bytes.data() + 4, units_.size() * 4);
    texts_ = bytes.substr(4 + size);
    if (!is_utf8(texts_)) unknown_part("a charsmap with invalid UTF-8");
    size_t longest = 0;
    for (size_t at = 0; at < texts_.size();) {
      const size_t end = std::min(texts_.find('\0', at), texts_.size());
      longest = std::max(longest, count_characters(std::string_view(texts_).substr(at, end - at)));
      at = end + 1;
    }
    growth_ = static_cast<double>(std::max<size_t>(longest, 1));
  }

  double growth() const { return growth_; }

  // Appends the replacement of the shortest prefix that has one. Returns whether there is one.
  bool replace(std::string_view text, std::string& to) const {
    size_t node = 0;
    if (units_.empty()) return false;
    node ^= offset(units_[0]);
    for (const char each : text) {
      const auto byte = static_cast<uint8_t>(each);
      if (byte == 0) return false;
      node ^= byte;
      if (node >= units_.size() || (units_[node] & 0x800000FF) != byte) return false;
      const uint32_t unit = units_[node];
      node ^= offset(unit);
      if ((unit >> 8 & 1) == 0) continue;
      const uint32_t value = node < units_.size() ? units_[node] & 0x7FFFFFFF : UINT32_MAX;
      if (value > texts_.size()) unknown_part("a charsmap with a wrong entry");
      to += texts_.c_str() + value;
      return true;
    }
    return false;
  }

 private:
  static size_t offset(uint32_t unit) { return unit >> 10 << ((unit & 0x200) >> 6); }

  static std::string decoded(std::string_view base64) {
    std::string bytes;
    uint32_t bits = 0;
    int count = 0;
    while (!base64.empty() && base64.back() == '=') base64.remove_suffix(1);
    constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    uint8_t values[256];
    std::fill(std::begin(values), std::end(values), uint8_t{64});
    for (size_t i = 0; i < kDigits.size(); ++i) values[static_cast<uint8_t>(kDigits[i])] = static_cast<uint8_t>(i);
    for (const char digit : base64) {
      const uint8_t value = values[static_cast<uint8_t>(digit)];
      if (value == 64) unknown_part("a charsmap that is not base64");
      bits = bits << 6 | value;
      if ((count += 6) >= 8) bytes += static_cast<char>(bits >> (count -= 8));
    }
    return bytes;
  }

  std::vector<uint32_t> units_;
  std::string texts_;
  double growth_;
};

// Replaces whole grapheme clusters of at most five bytes, or else characters, as the library does.
void apply_charsmap(const Charsmap& map, Piece& piece) {
  const std::string_view from = piece.text;
  std::string to;
  for (size_t at = 0; at < from.size();) {
    const size_t end = grapheme_end(from, at);
    if (end - at < 6 && map.replace(from.substr(at, end - at), to)) {
      at = end;
      continue;
    }
    while (at < end) {
      const size_t start = at;
      next_character(from, at);
      if (!map.replace(from.substr(start, at - start), to)) to += from.substr(start, at - start);
    }
  }
  piece.text = std::move(to);
}

void strip(Piece& piece, bool left, bool right) {
  std::string& text = piece.text;
  size_t begin = 0, end = text.size();
  for (size_t next = begin; left && begin < end && properties_of(next_character(text, next)).space();) begin = next;
  while (right && begin < end) {
    size_t last = previous_start(text, end);
    const size_t start = last;
    if (!properties_of(next_character(text, last)).space()) break;
    end = start;
  }
  piece.at_start = piece.at_start && begin == 0;
  text = text.substr(begin, end - begin);
}

void replace(const Finder& finder, const std::string& content, Piece& piece) {
  std::string text;
  for (const Range& range : finder(piece.text)) {
    const auto part = std::string_view(piece.text).substr(range.begin, range.end - range.begin);
    text += range.match ? std::string_view(content) : part;
    if (range.match && range.begin == 0 && count_characters(part) != 1) piece.at_start = false;
  }
  piece.text = std::move(text);
}

Normalizer replacement_from(Json state) {
  const Json pattern = state["pattern"];
  const Finder finder = finder_from(pattern);
  const std::string content(state["content"].text());
  const auto size = static_cast<double>(count_characters(content));
  const double growth =
      pattern["String"] ? size / static_cast<double>(count_characters(pattern["String"].text())) : size + 1;
  return {[finder, content](Piece& piece) { replace(finder, content, piece); }, std::max(1.0, growth)};
}

Normalizer sequence_from(Json state) {
  std::vector<Normalizer> all;
  double growth = 1;
  for_each_item(state["normalizers"], [&](Json each) {
    all.push_back(normalizer_from(each));
    growth *= all.back().growth;
  });
  const auto run = [all = std::move(all)](Piece& piece) {
    for (const Normalizer& each : all) each.run(piece);
  };
  return {run, growth};
}

}  // namespace

Normalizer normalizer_from(Json state) {
  if (!state) return {[](Piece&) {}};
  const std::string_view type = state["type"].text();
  if (type == "Sequence") return sequence_from(state);
  if (type == "NFC") return {[](Piece& piece) { piece.text = normal_form(piece.text, true); }, kMostDecomposed};
  if (type == "BertNormalizer") return bert_from(state);
  if (type == "Lowercase") return {[](Piece& piece) { piece.text = lower_case(piece.text); }};
  if (type == "Replace") return replacement_from(state);
  if (type == "Strip") {
    const bool left = state["strip_left"].flag(), right = state["strip_right"].flag();
    return {[=](Piece& piece) { strip(piece, left, right); }};
  }
  if (type == "Prepend") {
    const std::string prefix(state["prepend"].text());
    const auto run = [prefix](Piece& piece) {
      if (!piece.text.empty()) piece.text.insert(0, prefix);
    };
    return {run, std::max(1.0, static_cast<double>(count_characters(prefix)))};
  }
  if (type == "Precompiled") {
    const auto map = std::make_shared<const Charsmap>(state["precompiled_charsmap"].text());
    return {[map](Piece& piece) { apply_charsmap(*map, piece); }, map->growth()};
  }
  unknown_part("the normalizer " + quoted(type));
}

}  // namespace blip2rt
