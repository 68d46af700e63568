// Walks over characters, with Python's notion of white space and letters.
#include "english/text_forms.h"

#include <algorithm>
#include <vector>

#include "base/unicode.h"

namespace blip2rt {
namespace {

// In this order they lose their space.
constexpr std::string_view kCleaned[] = {" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're"};
constexpr std::string_view kMayChange = " .?!,'ntmsver";

bool is_space(uint32_t character) {
  return properties_of(character).space() || (character >= 0x1C && character <= 0x1F);  // Python counts separators
}

bool is_alphanumeric(uint32_t character) {
  const Properties::Category category = properties_of(character).category();
  return (category >= Properties::kLu && category <= Properties::kLo) ||
         (category >= Properties::kNd && category <= Properties::kNo);
}

// Whether a word joins the one before it: [.,!?;:] as a whole, or n't, 's, 'm, 're, 've, 'll, 'd as a whole or before a
// character that does not belong to a word.
bool joins(std::string_view word) {
  if (word.size() == 1 && std::string_view(".,!?;:").find(word[0]) != std::string_view::npos) return true;
  for (const std::string_view clitic : {"n't", "'s", "'m", "'re", "'ve", "'ll", "'d"}) {
    if (word.substr(0, clitic.size()) != clitic) continue;
    size_t at = clitic.size();
    if (at == word.size()) return true;
    if (!is_word_character(next_character(word, at))) return true;
  }
  return false;
}

// Whether what follows decides about the space before a word at the end of a text: a beginning of a clitic, or
// [.,!?;:].
bool may_join(std::string_view word) {
  if (word.size() == 1 && std::string_view(".,!?;:n").find(word[0]) != std::string_view::npos) return true;
  if (word == "n'" || word == "n't") return true;
  if (word.empty() || word[0] != '\'') return false;
  size_t characters = 0;
  for (size_t at = 1; at < word.size(); ++characters) {
    if (!is_word_character(next_character(word, at))) return false;
  }
  return characters <= 2;
}

bool is_cased(uint32_t character) {
  const Properties::Category category = properties_of(character).category();
  constexpr uint32_t kFeminine = 0xAA, kMasculine = 0xBA;  // ordinal signs
  return (category >= Properties::kLu && category <= Properties::kLt) || character == kFeminine ||
         character == kMasculine;
}

// Marks, modifiers, and punctuation within words, which do not end a word.
bool is_case_ignorable(uint32_t character) {
  constexpr uint32_t kMiddle[] = {'\'',   '.',    ':',    0xB7,   0x387,  0x55F,  0x5F4,  0x2018, 0x2019,
                                  0x2024, 0x2027, 0xFE13, 0xFE52, 0xFE55, 0xFF07, 0xFF0E, 0xFF1A};
  const Properties::Category category = properties_of(character).category();
  return category == Properties::kMn || category == Properties::kMe || category == Properties::kCf ||
         category == Properties::kLm || category == Properties::kSk ||
         std::find(std::begin(kMiddle), std::end(kMiddle), character) != std::end(kMiddle);
}

bool cased_letter_follows(std::string_view text, size_t at) {
  while (at < text.size()) {
    const uint32_t character = next_character(text, at);
    if (!is_case_ignorable(character)) return is_cased(character);
  }
  return false;
}

}  // namespace

std::vector<std::string_view> words_of(std::string_view text) {
  std::vector<std::string_view> words;
  size_t start = std::string_view::npos;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const bool space = is_space(next_character(text, at));
    if (space && start != std::string_view::npos) words.push_back(text.substr(start, begin - start));
    start = space ? std::string_view::npos : std::min(start, begin);
  }
  if (start != std::string_view::npos) words.push_back(text.substr(start));
  return words;
}

std::string joined_words(const std::vector<std::string_view>& words) {
  std::string text;
  for (const std::string_view word : words) {
    if (!text.empty()) text += ' ';
    text += word;
  }
  return text;
}

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// Python writes a capital sigma at the end of a word as a final one: behind a letter with case, but not before one.
std::string lower_text(std::string_view text) {
  constexpr uint32_t kCapitalSigma = 0x3A3, kFinalSigma = 0x3C2;
  std::string result;
  size_t done = 0;
  bool after_letter = false;
  for (size_t at = 0; at < text.size();) {
    const size_t begin = at;
    const uint32_t character = next_character(text, at);
    if (character == kCapitalSigma && after_letter && !cased_letter_follows(text, at)) {
      result += lower_case(text.substr(done, begin - done));
      append_utf8(kFinalSigma, result);
      done = at;
    }
    if (!is_case_ignorable(character)) after_letter = is_cased(character);
  }
  return result + lower_case(text.substr(done));
}

std::string_view stripped(std::string_view text) {
  size_t begin = 0;
  for (size_t at = 0; at < text.size() && is_space(next_character(text, at));) begin = at;
  return stripped_end(text.substr(begin));
}

std::string_view stripped_end(std::string_view text) {
  while (!text.empty()) {
    const size_t last = previous_start(text, text.size());
    size_t at = last;
    if (!is_space(next_character(text, at))) break;
    text = text.substr(0, last);
  }
  return text;
}

std::string trimmed(const std::string& text, const char* characters, bool left) {
  const size_t first = left ? text.find_first_not_of(characters) : 0;
  const size_t last = text.find_last_not_of(characters);
  return last == std::string::npos || first > last ? "" : text.substr(first, last + 1 - first);
}

std::string tidied(std::string_view text) {
  std::string line;
  for (const std::string_view word : words_of(text)) {
    if (!line.empty() && !joins(word)) line += ' ';
    line += word;
  }
  return line;
}

size_t settled_line(std::string_view text) {
  const std::string_view line = stripped_end(text);
  if (line.size() < text.size()) return line.size();
  const std::vector<std::string_view> words = words_of(text);
  if (words.empty() || words.back().size() == text.size() || !may_join(words.back())) return text.size();
  return stripped_end(text.substr(0, text.size() - words.back().size())).size();
}

std::string cleaned_up(std::string text) {
  for (const std::string_view pattern : kCleaned) {
    std::string without;
    std::copy_if(pattern.begin(), pattern.end(), std::back_inserter(without), [](char c) { return c != ' '; });
    for (size_t at = text.find(pattern); at != std::string::npos; at = text.find(pattern, at + without.size())) {
      text.replace(at, pattern.size(), without);
    }
  }
  return text;
}

size_t cleaned_length(std::string_view text) {
  const size_t last = text.find_last_not_of(kMayChange);
  return last == std::string_view::npos ? 0 : last + 1;
}

std::string clean_caption(std::string_view text) {
  std::string plain = lower_text(text);
  for (char& c : plain) {
    if (std::string_view(".!\"()*#:;~").find(c) != std::string_view::npos) c = ' ';
  }
  return joined_words(words_of(plain));
}

bool is_word_character(uint32_t character) { return character == '_' || is_alphanumeric(character); }

bool has_words(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (is_alphanumeric(next_character(text, at))) return true;
  }
  return false;
}

std::string_view first_characters(std::string_view text, size_t count) {
  size_t at = 0;
  for (; count > 0 && at < text.size(); --count) next_character(text, at);
  return text.substr(0, at);
}

}  // namespace blip2rt
