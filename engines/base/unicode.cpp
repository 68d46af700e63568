#include "base/unicode.h"

#include <algorithm>
#include <cstddef>
#include <unordered_map>
#include <vector>

#include "base/unicode_tables.h"

namespace blip2rt {
namespace {

// The numbers that make_unicode_tables.py wrote: literals and copies of earlier numbers, in turns.
class Numbers {
 public:
  explicit Numbers(const char* at) : at_(at) {
    while (*at_ != '\0') {
      for (uint32_t literals = read(); literals != 0; --literals) numbers_.push_back(read());
      const uint32_t length = read(), distance = read();
      for (uint32_t i = 0; i < length; ++i) numbers_.push_back(numbers_[numbers_.size() - distance]);
    }
  }

  bool more() const { return next_ < numbers_.size(); }
  uint32_t next() { return numbers_[next_++]; }

 private:
  static constexpr uint32_t kBase = 46;

  uint32_t read() {
    uint32_t number = 0;
    for (uint32_t digit = value();; digit = value()) {
      if (digit < kBase) return number * kBase + digit;
      number = number * kBase + (digit - kBase) + 1;
    }
  }

  uint32_t value() {
    const char sign = *at_++;
    return static_cast<uint32_t>(sign - ' ' - (sign > '"') - (sign > '?') - (sign > '\\'));
  }

  const char* at_;
  std::vector<uint32_t> numbers_;
  size_t next_ = 0;
};

struct Ranges {
  Ranges() {
    std::vector<uint32_t> kinds;
    for (Numbers numbers(kPropertyKinds); numbers.more();) kinds.push_back(numbers.next());
    uint32_t start = 0;
    for (Numbers numbers(kPropertyRanges); numbers.more();) {
      start += numbers.next();
      starts.push_back(start);
      bits.push_back(kinds[numbers.next()]);
    }
    for (uint32_t i = 0; i < 128; ++i) ascii[i] = find(i);
  }

  uint32_t find(uint32_t character) const {
    return bits[static_cast<size_t>(std::upper_bound(starts.begin(), starts.end(), character) - starts.begin()) - 1];
  }

  std::vector<uint32_t> starts, bits;
  uint32_t ascii[128];
};

using Text = std::u32string;

struct Mappings {
  enum Kind { kLower, kCanonical, kKinds };

  Mappings() {
    std::vector<const std::pair<const uint32_t, Text>*> composed;
    Numbers numbers(kMappings);
    uint32_t last[32] = {};  // codes are written as differences from the mapping before; odd ones are negative
    for (auto& map : maps) {
      uint32_t code = 0;
      for (uint32_t head = numbers.next(); head != 0; head = numbers.next()) {
        code += numbers.next();
        Text mapped(head / 2, 0);
        for (size_t i = 0; i < mapped.size(); ++i) {
          const uint32_t change = numbers.next();
          mapped[i] = last[i] += change % 2 == 0 ? change / 2 : 0u - (change + 1) / 2;
        }
        const auto& entry = *map.emplace(code, std::move(mapped)).first;
        if (head % 2 == 1) composed.push_back(&entry);
      }
    }
    const auto shorter = [](const auto* a, const auto* b) { return a->second.size() < b->second.size(); };
    std::sort(composed.begin(), composed.end(), shorter);
    for (const auto* entry : composed) {
      const Text& parts = entry->second;
      uint32_t first = parts[0];
      for (size_t i = 1; i + 1 < parts.size(); ++i) first = compose(first, parts[i]);
      pairs.emplace(pair(first, parts.back()), entry->first);
    }
  }

  static uint64_t pair(uint64_t first, uint64_t second) { return first << 32 | second; }

  // Returns 0 if the pair has no composition. Hangul is computed (Unicode standard, section 3.12).
  uint32_t compose(uint32_t first, uint32_t second) const {
    if (first - 0x1100 < 19 && second - 0x1161 < 21) return 0xAC00 + ((first - 0x1100) * 21 + second - 0x1161) * 28;
    if (first - 0xAC00 < 11172 && (first - 0xAC00) % 28 == 0 && second - 0x11A8 < 27) return first + second - 0x11A7;
    const auto found = pairs.find(pair(first, second));
    return found == pairs.end() ? 0 : found->second;
  }

  void decompose(uint32_t character, Text& to) const {
    const auto found = maps[kCanonical].find(character);
    if (found != maps[kCanonical].end()) {
      to += found->second;
      return;
    }
    const uint32_t syllable = character - 0xAC00;
    if (syllable >= 11172) {
      to += character;
      return;
    }
    to += {0x1100 + syllable / 588, 0x1161 + syllable % 588 / 28};
    if (syllable % 28 != 0) to += 0x11A7 + syllable % 28;
  }

  std::unordered_map<uint32_t, Text> maps[kKinds];
  std::unordered_map<uint64_t, uint32_t> pairs;
};

const Mappings& mappings() {
  static const Mappings kAll;
  return kAll;
}

uint8_t class_of(uint32_t character) { return properties_of(character).combining_class(); }

// Sorts each run of marks by their class.
void sort_marks(Text& text) {
  for (size_t i = 0; i < text.size();) {
    size_t end = i;
    while (end < text.size() && class_of(text[end]) != 0) ++end;
    std::stable_sort(text.begin() + static_cast<std::ptrdiff_t>(i), text.begin() + static_cast<std::ptrdiff_t>(end),
                     [](char32_t a, char32_t b) { return class_of(a) < class_of(b); });
    i = end + 1;
  }
}

Text composed_form(const Text& text) {
  Text result;
  size_t starter = Text::npos;
  int last = 0;  // class of the last mark that stays between the starter and this character
  for (const char32_t character : text) {
    const int mark = class_of(character);
    const bool blocked =
        starter == Text::npos || (last != 0 && last >= mark) || (last == 0 && result.size() - 1 > starter);
    const uint32_t both = blocked ? 0 : mappings().compose(result[starter], character);
    if (both != 0) {
      result[starter] = both;
      continue;
    }
    if (mark == 0) starter = result.size();
    last = mark;
    result += character;
  }
  return result;
}

}  // namespace

int write_utf8(uint32_t code, char* to) {
  if (code < 0x80) {
    to[0] = static_cast<char>(code);
    return 1;
  }
  const int size = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
  for (int i = size - 1; i > 0; --i, code >>= 6) to[i] = static_cast<char>(0x80 | (code & 63));
  to[0] = static_cast<char>((0xF00 >> size & 0xFF) | code);
  return size;
}

void append_utf8(uint32_t code, std::string& to) {
  char bytes[4];
  to.append(bytes, static_cast<size_t>(write_utf8(code, bytes)));
}

size_t count_characters(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char byte) { return (byte & 0xC0) != 0x80; }));
}

Properties properties_of(uint32_t character) {
  static const Ranges kRanges;
  return {character < 128 ? kRanges.ascii[character] : kRanges.find(character)};
}

std::string lower_case(std::string_view text) {
  std::string lower;
  lower.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const uint32_t character = next_character(text, at);
    if (character < 128) {
      lower += static_cast<char>(character >= 'A' && character <= 'Z' ? character + 32 : character);
      continue;
    }
    const auto& map = mappings().maps[Mappings::kLower];
    const auto found = map.find(character);
    if (found == map.end()) {
      append_utf8(character, lower);
    } else {
      for (const char32_t each : found->second) append_utf8(each, lower);
    }
  }
  return lower;
}

std::string normal_form(std::string_view text, bool composed) {
  if (std::all_of(text.begin(), text.end(), [](char byte) { return static_cast<uint8_t>(byte) < 0x80; })) {
    return std::string(text);
  }
  Text parts;
  for (size_t at = 0; at < text.size();) mappings().decompose(next_character(text, at), parts);
  sort_marks(parts);
  if (composed) parts = composed_form(parts);
  std::string form;
  for (const char32_t part : parts) append_utf8(part, form);
  return form;
}

size_t grapheme_end(std::string_view text, size_t at) {
  using P = Properties;
  uint32_t character = next_character(text, at);
  Properties before = properties_of(character);
  int regional = before.grapheme() == P::kRegion;
  bool picture = before.grapheme() == P::kPicture, consonant = before.conjunct() == P::kConsonant, linked = false;
  for (size_t next = at; next < text.size(); at = next) {
    const uint32_t last = character;
    character = next_character(text, next);
    const Properties after = properties_of(character);
    const P::Grapheme a = before.grapheme(), b = after.grapheme();
    bool joins = b == P::kExtend || b == P::kZwj || b == P::kSpacing || a == P::kPrepend;
    joins = joins || (a == P::kL && (b == P::kL || b == P::kV || b == P::kLV || b == P::kLVT)) ||
            ((a == P::kLV || a == P::kV) && (b == P::kV || b == P::kT)) || ((a == P::kLVT || a == P::kT) && b == P::kT);
    joins = joins || (consonant && linked && after.conjunct() == P::kConsonant);
    joins = joins || (a == P::kZwj && picture && b == P::kPicture) || (b == P::kRegion && regional % 2 == 1);
    const auto breaks = [](uint32_t code, P::Grapheme kind) {
      return kind == P::kControl || code == '\r' || code == '\n';
    };
    if (breaks(last, a) || breaks(character, b)) joins = last == '\r' && character == '\n';
    if (!joins) return at;
    regional = b == P::kRegion ? regional + 1 : 0;
    picture = b == P::kPicture || (picture && (b == P::kExtend || b == P::kZwj));
    linked = after.conjunct() == P::kLinker || (linked && after.conjunct() == P::kConjunctExtend);
    consonant = after.conjunct() == P::kConsonant || (consonant && after.conjunct() != P::kNone);
    before = after;
  }
  return text.size();
}

}  // namespace blip2rt
