// Characters: UTF-8, and the properties and mappings that the library `tokenizers` uses.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace blip2rt {

// Reads the character that begins at `at` in valid UTF-8, and moves `at` behind it.
inline uint32_t next_character(std::string_view text, size_t& at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[i])); };
  const uint32_t first = byte(at++);
  if (first < 0x80) return first;
  const int more = first < 0xE0 ? 1 : first < 0xF0 ? 2 : 3;
  uint32_t code = first & (0x3Fu >> more);
  for (int i = 0; i < more; ++i) code = code << 6 | (byte(at++) & 63u);
  return code;
}

// Returns the start of the character before `at`.
inline size_t previous_start(std::string_view text, size_t at) {
  do --at;
  while ((static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

// Writes a character as 1 to 4 bytes and returns their number.
int write_utf8(uint32_t code, char* to);
void append_utf8(uint32_t code, std::string& to);
size_t count_characters(std::string_view text);

// The properties of a character, as make_unicode_tables.py packs them.
struct Properties {
  // Places in Cn Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co Cs, those in use.
  enum Category : uint8_t { kLu = 1, kLt = 3, kLm, kLo, kMn, kMe = 8, kNd, kNo = 11, kSk = 21, kCf = 27 };
  enum Grapheme : uint8_t { kControl = 1, kExtend, kZwj, kRegion, kPrepend, kSpacing, kL, kV, kT, kLV, kLVT, kPicture };
  enum Conjunct : uint8_t { kNone, kConsonant, kLinker, kConjunctExtend };

  uint32_t bits;
  Category category() const { return static_cast<Category>(bits & 31); }
  bool regex_word() const { return bits >> 5 & 1; }  // of Oniguruma, for regular expressions in files
  bool regex_space() const { return bits >> 6 & 1; }
  bool word() const { return bits >> 7 & 1; }  // of Rust's crate regex
  bool space() const { return bits >> 8 & 1; }
  bool numeric() const { return bits >> 9 & 1; }
  bool punctuation() const { return bits >> 10 & 1; }
  bool control() const { return bits >> 11 & 1; }  // removed by BertNormalizer's clean_text
  bool accent() const { return bits >> 12 & 1; }   // removed by BertNormalizer's strip_accents
  Grapheme grapheme() const { return static_cast<Grapheme>(bits >> 13 & 15); }
  Conjunct conjunct() const { return static_cast<Conjunct>(bits >> 17 & 3); }
  uint8_t combining_class() const { return static_cast<uint8_t>(bits >> 19); }
};

Properties properties_of(uint32_t character);

std::string lower_case(std::string_view text);

// NFC, or NFD if not `composed`.
std::string normal_form(std::string_view text, bool composed);

// Returns the end of the grapheme cluster that begins at `at`.
size_t grapheme_end(std::string_view text, size_t at);

}  // namespace blip2rt
