#include "english/answer_words.h"

#include <algorithm>
#include <array>
#include <unordered_set>
#include <utility>

#include "base/parse.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view kSubjects = "what which who";
constexpr std::string_view kPluralVerbs =
    "are were have sit stand lie lay hang walk run ride fly swim float move wait rest sleep graze grow play look face "
    "appear travel wander";
// After the verb, they begin another subject.
constexpr std::string_view kDeterminers =
    "the this that these those there they you we he she it i his her their its a an people two three four many some";
constexpr std::string_view kIrregular = "people men women children sheep cattle fish geese mice teeth feet";
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

}  // namespace

bool asks_for_plural(const std::string& question) {
  const std::string lower = lowered(question);
  const std::vector<std::string_view> words = words_of(lower);
  return words.size() > 2 && is_listed(words[0], kSubjects) && is_listed(words[1], kPluralVerbs) &&
         !is_listed(words[2], kDeterminers);
}

bool offers_choice(const std::string& question) {
  const std::string lower = lowered(question);
  const std::vector<std::string_view> words = words_of(lower);
  return std::find(words.begin(), words.end(), "or") != words.end();
}

bool is_plural(std::string_view word) {
  const std::string plain = lowered(word.substr(std::min(word.find_first_not_of(' '), word.size())));
  const auto ends = [&plain](std::string_view ending) { return ends_with(plain, ending); };
  return (ends("s") && std::none_of(kSingularEndings.begin(), kSingularEndings.end(), ends)) ||
         is_listed(plain, kIrregular);
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
