// Two letters are seldom swapped in a word that exists: of 20,362 words of BERT's vocabulary, these rules change 29, as
// "trial" into "trail". All edits of one letter would change 1,043, "small" into "stall", and are left alone.
#include "english/spelling.h"

#include <set>
#include <utility>

#include "english/labels.h"
#include "english/statements.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

using Words = std::set<std::string, std::less<>>;

constexpr size_t kMinLetters = 4;

const Words kAsked = {"there",  "picture", "image", "photo", "photograph", "many",   "people",
                      "person", "what",    "which", "color", "colour",     "anyone", "someone"};
const Words kSaid = {
    "this",    "that",     "does",    "with",     "near",    "behind",  "inside",  "outside", "indoors", "outdoors",
    "wearing", "riding",   "sitting", "standing", "walking", "running", "playing", "holding", "eating",  "swimming",
    "jumping", "sleeping", "smiling", "looking",  "flying",  "surfing", "skiing",  "through", "across",  "carrying",
    "here",    "three",    "able",    "lost",     "sing",    "cast",    "host",    "arts",    "acts",    "tries",
    "yellow",  "green",    "blue",    "purple",   "pink",    "brown",   "black",   "white",   "gray"};

const Words& known_words() {
  static const Words words = [] {
    Words all(kSaid);
    all.insert(kAsked.begin(), kAsked.end());
    for (const Label& label : Labels::everyday()->all()) {
      std::vector<std::string> names = label.synonyms;
      names.push_back(label.name);
      for (const std::string& name : names) {
        for (const std::string_view word : words_of(name))
          all.insert({std::string(word), plural_of(std::string(word))});
      }
    }
    return all;
  }();
  return words;
}

std::string respelled_word(const std::string& word) {
  if (word.size() < kMinLetters || known_words().count(word) != 0) return word;
  Words found;
  for (size_t i = 0; i + 1 < word.size(); ++i) {
    std::string other = word;
    std::swap(other[i], other[i + 1]);
    if (known_words().count(other) != 0) found.insert(other);
  }
  for (const std::string& other : kAsked) {
    for (size_t i = 0; i < other.size(); ++i) {
      if (other.substr(0, i) + other.substr(i + 1) == word) found.insert(other);
    }
  }
  return found.size() == 1 ? *found.begin() : word;
}

}  // namespace

std::string respelled(const std::string& text) {
  std::string all;
  for (const std::string_view word : words_of(text)) {
    all += (all.empty() ? "" : " ") + respelled_word(std::string(word));
  }
  return all;
}

}  // namespace blip2rt
