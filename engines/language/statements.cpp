// Matches the forms of questions by regular expressions.
#include "language/statements.h"

#include <algorithm>
#include <regex>
#include <set>
#include <vector>

#include "base/unicode.h"
#include "language/answer_words.h"
#include "language/text_forms.h"

namespace blip2rt {
namespace {

using Words = std::set<std::string, std::less<>>;

constexpr size_t kPhraseWords = 4, kMaxCharacters = 300;  // of a question that is read at all

const Words kAnyone = {"anyone",     "anybody", "someone",     "somebody", "any people",
                       "any person", "people",  "any persons", "a human"};
const Words kArticles = {"a", "an", "the"};
const Words kMass = {
    // nouns that take no article
    "alcohol",   "baseball",  "basketball",   "beer",     "bread", "broccoli", "butter",  "cake",       "cheese",
    "chocolate", "clothing",  "coffee",       "corn",     "dirt",  "fire",     "fog",     "food",       "football",
    "fruit",     "furniture", "golf",         "graffiti", "grass", "hair",     "hay",     "ice",        "jewelry",
    "juice",     "lettuce",   "luggage",      "makeup",   "meat",  "milk",     "mud",     "paper",      "pasta",
    "pizza",     "popcorn",   "rain",         "rice",     "salad", "sand",     "seafood", "silverware", "skiing",
    "smoke",     "snow",      "snowboarding", "soccer",   "soup",  "steam",    "string",  "sunlight",   "surfing",
    "sushi",     "swimming",  "tea",          "tennis",   "text",  "toast",    "traffic", "trash",      "water",
    "wheat",     "wine",      "wood",         "yogurt"};

// The first group is what a question asks for.
const std::vector<std::regex>& questions() {
  static const std::vector<std::regex> patterns = [] {
    const std::string picture = "(?:the|this|that) (?:picture|image|photo|photograph|scene|shot|frame|view|snapshot)";
    const std::string shown = "(?:visible |present |shown )?";
    const std::string place =
        "(?: (?:at all|anywhere|somewhere|here|visible|present|shown|in it|" + shown + "(?:in|on) " + picture + "))";
    const std::string indefinite = "(?!(?:the|this|that|these|those|it|he|she|they|we|you|i) )";
    std::vector<std::regex> made;
    for (const std::string& pattern :
         {"(?:is|are) there (.+?)" + place + "*",
          "(?:do|can) (?:you|we|i) (?:see|spot|find|detect|notice) (.+?)" + place + "*",
          "do(?:es)? " + picture + " (?:show|contain|have|include|depict) (.+?)" + place + "*",
          "(?:is|are) ((?:a|an|any|some) .+?)" + place + "+",
          "(?:is|are) (" + indefinite + ".+?) (?:visible|in " + picture + ")" + place + "*"}) {
      made.emplace_back(pattern);
    }
    return made;
  }();
  return patterns;
}

// Whether what is asked is not whether something is there.
bool asks_otherwise(std::string_view what) {
  static const Words other = {"no",    "not",   "none", "nothing",  "or",        "else",       "same",    "more",
                              "less",  "fewer", "many", "much",     "several",   "both",       "another", "other",
                              "only",  "one",   "two",  "three",    "four",      "five",       "six",     "seven",
                              "eight", "nine",  "ten",  "anything", "something", "everything", "what",    "which",
                              "who",   "why",   "how",  "where",    "when",      "difference"};
  std::string word;
  bool is_number = true;
  for (size_t at = 0; at <= what.size();) {
    const size_t begin = at;
    const uint32_t character = at < what.size() ? next_character(what, at) : (++at, ' ');
    if (is_word_character(character)) {
      word += what.substr(begin, at - begin);
      is_number = is_number && properties_of(character).category() == Properties::kNd;
      continue;
    }
    if (!word.empty() && (is_number || other.count(word) != 0)) return true;
    word.clear();
    is_number = true;
  }
  return false;
}

bool is_instruction(std::string_view sentence) {
  static const std::regex pattern("(?:please )?(?:just |only )?(?:answer|reply|respond|say)");
  std::cmatch found;
  if (!std::regex_search(sentence.data(), sentence.data() + sentence.size(), found, pattern,
                         std::regex_constants::match_continuous)) {
    return false;
  }
  auto at = static_cast<size_t>(found.length());
  return at == sentence.size() || !is_word_character(next_character(sentence, at));
}

// Without these characters at the ends.
std::string trimmed(const std::string& text, const char* characters, bool left = true) {
  const size_t first = left ? text.find_first_not_of(characters) : 0;
  const size_t last = text.find_last_not_of(characters);
  return last == std::string::npos || first > last ? "" : text.substr(first, last + 1 - first);
}

std::vector<std::string> sentences_of(const std::string& text) {
  std::vector<std::string> sentences(1);
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == ' ' && i > 0 && std::string_view("?!.").find(text[i - 1]) != std::string_view::npos) {
      sentences.emplace_back();
    } else {
      sentences.back() += text[i];
    }
  }
  return sentences;
}

bool begins_with(std::string_view text, std::string_view start) { return text.substr(0, start.size()) == start; }

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::string joined(const std::vector<std::string_view>& words) {
  std::string text;
  for (const std::string_view word : words) {
    if (!text.empty()) text += ' ';
    text += word;
  }
  return text;
}

// The only sentence of a question but for requests to be brief, in lower case; empty if there are more.
std::string sentence_of(std::string_view question) {
  if (count_characters(question) > kMaxCharacters) return "";
  std::vector<std::string> asked;
  for (const std::string& sentence : sentences_of(joined(words_of(lower_text(question))))) {
    const std::string part = trimmed(sentence, "?!. ");
    if (!part.empty() && !is_instruction(part)) asked.push_back(part);
  }
  if (asked.size() != 1) return "";
  std::string text = asked[0];
  if (begins_with(text, "please ")) text.erase(0, 7);
  if (ends_with(text, " please")) text.resize(text.size() - 7);
  return trimmed(text, ", ", false);
}

}  // namespace

std::optional<std::string> phrase_of(std::string_view question) {
  const std::string text = sentence_of(question);
  for (const std::regex& pattern : questions()) {
    std::smatch found;
    if (!std::regex_match(text, found, pattern) || asks_otherwise(found[1].str())) continue;
    std::string what = found[1].str();
    if (kAnyone.count(what) != 0) return "a person";
    for (const char* word : {"any ", "some ", "the "}) {
      if (begins_with(what, word)) return what.substr(std::string_view(word).size());
    }
    return what;
  }
  return std::nullopt;
}

std::optional<std::string> number_question(std::string_view question) {
  constexpr std::string_view start = "how many ";
  const std::string text = sentence_of(question);
  if (!begins_with(text, start) || text.size() == start.size() || text.find('?') != std::string::npos) {
    return std::nullopt;
  }
  return text + "?";
}

bool is_phrase(std::string_view text) { return words_of(text).size() <= kPhraseWords; }

std::string question_of(std::string_view phrase) {
  const std::string plain = trimmed(std::string(phrase), " .", false);
  const std::vector<std::string_view> words = words_of(plain);
  const bool many = !words.empty() && kArticles.count(lower_text(words.front())) == 0 && is_plural(words.back()) &&
                    std::find(words.begin(), words.end(), "of") == words.end();
  return (many ? "are there " : "is there ") + joined(words) + "?";
}

std::string with_article(const std::string& phrase) {
  const std::string lower = lower_text(phrase);
  const std::vector<std::string_view> words = words_of(lower);
  size_t end = lower.size();
  for (const char* preposition : {" of ", " in ", " on ", " at ", " with "}) {
    end = std::min(end, std::min(lower.find(preposition), lower.size()));
  }
  std::string head = lower.substr(0, end);
  head = head.substr(head.rfind(' ') + 1);
  if (words.empty() || words.size() > 3 || kArticles.count(words[0]) != 0 || kMass.count(head) != 0 ||
      is_plural(head)) {
    return phrase;
  }
  const bool vowel = std::string_view("aeiou").find(words[0][0]) != std::string_view::npos;
  return (vowel ? "an " : "a ") + phrase;
}

std::string without_article(const std::string& phrase) {
  const size_t space = phrase.find(' ');
  if (space == std::string::npos || space + 1 == phrase.size()) return phrase;
  return kArticles.count(lower_text(phrase.substr(0, space))) != 0 ? phrase.substr(space + 1) : phrase;
}

std::string plural_of(const std::string& noun) {
  const auto ends = [&noun](const char* end) { return ends_with(noun, end); };
  if (ends("man") && !ends("human")) return noun.substr(0, noun.size() - 2) + "en";
  if (ends("s") || ends("x") || ends("z") || ends("ch") || ends("sh")) return noun + "es";
  const bool consonant_y =
      ends("y") && noun.size() > 1 && std::string_view("aeiou").find(noun[noun.size() - 2]) == std::string_view::npos;
  return consonant_y ? noun.substr(0, noun.size() - 1) + "ies" : noun + "s";
}

}  // namespace blip2rt
