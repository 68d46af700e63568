#include "english/answer_words.h"

#include <algorithm>
#include <array>
#include <unordered_set>
#include <utility>

#include "english/text_forms.h"

namespace blip2rt {
namespace {

using namespace std::string_view_literals;

constexpr std::array kSubjects = {"what"sv, "which"sv, "who"sv};
constexpr std::array kPluralVerbs = {"are"sv,  "were"sv, "have"sv,   "sit"sv,    "stand"sv, "lie"sv,  "lay"sv,
                                     "hang"sv, "walk"sv, "run"sv,    "ride"sv,   "fly"sv,   "swim"sv, "float"sv,
                                     "move"sv, "wait"sv, "rest"sv,   "sleep"sv,  "graze"sv, "grow"sv, "play"sv,
                                     "look"sv, "face"sv, "appear"sv, "travel"sv, "wander"sv};
// After the verb, they begin another subject.
constexpr std::array kDeterminers = {"the"sv,   "this"sv,  "that"sv, "these"sv, "those"sv, "there"sv,  "they"sv,
                                     "you"sv,   "we"sv,    "he"sv,   "she"sv,   "it"sv,    "i"sv,      "his"sv,
                                     "her"sv,   "their"sv, "its"sv,  "a"sv,     "an"sv,    "people"sv, "two"sv,
                                     "three"sv, "four"sv,  "many"sv, "some"sv};
constexpr std::array kIrregular = {"people"sv, "men"sv,   "women"sv, "children"sv, "sheep"sv, "cattle"sv,
                                   "fish"sv,   "geese"sv, "mice"sv,  "teeth"sv,    "feet"sv};
constexpr std::array kSingularEndings = {"ss"sv, "us"sv, "is"sv};
constexpr std::array<std::pair<std::string_view, std::string_view>, 7> kEndings = {
    // of plurals, and what they become
    {{"s", ""}, {"ies", "y"}, {"ches", "ch"}, {"shes", "sh"}, {"sses", "ss"}, {"xes", "x"}, {"oes", "o"}}};

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::string lowered(std::string_view text) {
  std::string all(text);
  std::transform(all.begin(), all.end(), all.begin(), lower);
  return all;
}

template <class List>
bool contains(const List& list, std::string_view word) {
  return std::find(list.begin(), list.end(), word) != list.end();
}

}  // namespace

bool asks_for_plural(const std::string& question) {
  const std::string lower = lowered(question);
  const std::vector<std::string_view> words = words_of(lower);
  return words.size() > 2 && contains(kSubjects, words[0]) && contains(kPluralVerbs, words[1]) &&
         !contains(kDeterminers, words[2]);
}

bool offers_choice(const std::string& question) { return contains(words_of(lowered(question)), "or"); }

bool is_plural(std::string_view word) {
  const std::string plain = lowered(word.substr(std::min(word.find_first_not_of(' '), word.size())));
  const auto ends = [&plain](std::string_view ending) { return ends_with(plain, ending); };
  return (ends("s") && std::none_of(kSingularEndings.begin(), kSingularEndings.end(), ends)) ||
         contains(kIrregular, plain);
}

std::vector<bool> singular_tokens(const Vocabulary& vocabulary) {
  std::unordered_set<std::string> all = {" person", " man", " woman", " child"};
  std::vector<bool> singular(vocabulary.size());
  for (size_t token = 0; token < vocabulary.size(); ++token) {
    const std::string plural(vocabulary.text(token));
    if (!is_plural(plural)) continue;
    for (const auto& [many, one] : kEndings) {
      if (ends_with(plural, many)) all.insert(plural.substr(0, plural.size() - many.size()).append(one));
    }
  }
  for (size_t token = 0; token < vocabulary.size(); ++token) {
    const std::string text(vocabulary.text(token));
    singular[token] = all.count(text) != 0 && !is_plural(text);
  }
  return singular;
}

}  // namespace blip2rt
