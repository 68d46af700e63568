// Of 20,362 words of BERT's vocabulary, these rules change those that are no token of the language model, as "panting"
// into "painting". With any letter too many or another one, twice as many words that exist would change.
#include "english/spelling.h"

#include <cctype>
#include <set>
#include <utility>

#include "base/parse.h"
#include "english/labels.h"
#include "english/statements.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

using Words = std::set<std::string, std::less<>>;

constexpr size_t kMinLetters = 3;       // of a word that lacks one
constexpr size_t kMinSwapped = 4;       // of a word with two letters swapped or a double one
constexpr size_t kMaxCharacters = 300;  // of a text that is corrected at all

constexpr std::string_view kOthers =
    "there picture image photo photograph many people person what which color colour anyone someone this that does "
    "with near behind inside outside indoors outdoors wearing riding sitting standing walking running playing holding "
    "eating jumping looking swimming sleeping smiling flying surfing skiing through across carrying yellow green blue "
    "purple pink brown black white gray";

const Words& known_words() {
  static const Words words = [] {
    const std::vector<std::string_view> others = parts_of(kOthers, ' ');
    Words all(others.begin(), others.end());
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
  Words found;
  const auto add = [&found](const std::string& other) {
    if (known_words().count(other) != 0) found.insert(other);
  };
  for (size_t i = 0; word.size() >= kMinSwapped && i + 1 < word.size(); ++i) {
    std::string other = word;
    std::swap(other[i], other[i + 1]);
    if (word[i] == word[i + 1]) other.erase(i, 1);
    add(other);
  }
  for (size_t i = 0; i <= word.size(); ++i) {
    for (char letter = 'a'; letter <= 'z'; ++letter) {
      if (i < word.size() || letter != 's') add(word.substr(0, i) + letter + word.substr(i));
    }
  }
  return found.size() == 1 ? *found.begin() : word;
}

}  // namespace

std::string respelled(const std::string& text, const std::function<bool(const std::string& word)>& is_word) {
  if (text.size() > kMaxCharacters) return text;
  std::string all, word;
  for (const char c : text + '\0') {
    if (std::isalpha(static_cast<unsigned char>(c)) != 0) {
      word += c;
      continue;
    }
    const std::string lower = lower_text(word);
    const bool stays = lower.size() < kMinLetters || known_words().count(lower) != 0 || is_word(lower);
    const std::string other = stays ? lower : respelled_word(lower);
    all += other == lower ? word : other;
    all += c;
    word.clear();
  }
  all.pop_back();
  return all;
}

}  // namespace blip2rt
