#include "english/statements.h"

#include <algorithm>
#include <vector>

#include "base/parse.h"
#include "english/answer_words.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

constexpr size_t kPhraseWords = 4;

constexpr std::string_view kArticles = "a an the";
constexpr std::string_view kMass =
    "alcohol baseball basketball beer bread broccoli butter cake cheese chocolate clothing coffee corn dirt fire "
    "fog food football fruit furniture golf graffiti grass hair hay ice jewelry juice lettuce luggage makeup meat "
    "milk mud paper pasta pizza popcorn rain rice salad sand seafood silverware skiing smoke snow snowboarding "
    "soccer soup steam string sunlight surfing sushi swimming tea tennis text toast traffic trash water wheat wine "
    "wood yogurt";  // nouns that take no article

}  // namespace

bool is_phrase(std::string_view text) { return words_of(text).size() <= kPhraseWords; }

std::string question_of(std::string_view phrase) {
  const std::string plain = trimmed(std::string(phrase), " .", false);
  const std::vector<std::string_view> words = words_of(plain);
  const bool many = !words.empty() && !is_listed(lower_text(words.front()), kArticles) && is_plural(words.back()) &&
                    std::find(words.begin(), words.end(), "of") == words.end();
  return (many ? "are there " : "is there ") + joined_words(words) + "?";
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
  if (words.empty() || words.size() > 3 || is_listed(words[0], kArticles) || is_listed(head, kMass) ||
      is_plural(head)) {
    return phrase;
  }
  const bool vowel = std::string_view("aeiou").find(words[0][0]) != std::string_view::npos;
  return (vowel ? "an " : "a ") + phrase;
}

std::string without_article(const std::string& phrase) {
  const size_t space = phrase.find(' ');
  if (space == std::string::npos || space + 1 == phrase.size()) return phrase;
  return is_listed(lower_text(phrase.substr(0, space)), kArticles) ? phrase.substr(space + 1) : phrase;
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
