// Turns questions with "is" and "does" into statements: finds where the subject ends and the predicate begins.
#include <algorithm>

#include "base/parse.h"
#include "english/questions.h"
#include "english/statements.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

using Tokens = std::vector<std::string>;

constexpr size_t kMaxOption = 6;  // words that an "or" offers

constexpr std::string_view kBe = "is are was were";
constexpr std::string_view kArticles = "a an";
constexpr std::string_view kPronouns =
    "it this that he she they these those anyone anybody someone somebody everyone everybody nobody";
constexpr std::string_view kDeterminers = "the a an any some all both this that these those his her their its";
constexpr std::string_view kPrepositions =
    "in on at with by near next under behind above over inside outside beside between from off around against along "
    "through facing not very made currently";
constexpr std::string_view kNamedIng =
    "building clothing morning evening string ring ceiling wedding railing swing wing painting thing something "
    "anything nothing dining living lightning king awning drawing";
constexpr std::string_view kVerbs =
    "have look wear hold ride eat play seem appear carry use stand sit sleep run drink read walk jump swim smile touch "
    "face";
constexpr std::string_view kWhatOther = "you i we your my there how what why same possible";

Tokens tokens_of(const std::string& text) {
  Tokens tokens;
  for (const std::string_view word : words_of(text)) tokens.emplace_back(word);
  return tokens;
}

std::string joined(Tokens::const_iterator from, Tokens::const_iterator to) {
  std::string text;
  for (; from != to; ++from) text += (text.empty() ? "" : " ") + *from;
  return text;
}

// Whether an ending follows a stem of two letters or more.
bool has_suffix(const std::string& word, const std::string& end) {
  return word.size() > end.size() + 1 && word.compare(word.size() - end.size(), end.size(), end) == 0;
}

// "the man | is | riding a horse"; "the man | has | a beard".
struct Clause {
  std::string subject, verb, predicate;
  bool negated = false;

  ShortQuestion stating(const std::string& other) const {
    using Kind = ShortQuestion::Kind;
    if (subject.empty()) return {Kind::kPresence, other, "", negated};
    return {Kind::kStatement, subject + (verb.empty() ? " " : " " + verb + " ") + other, subject, negated};
  }
};

// Where the predicate begins behind "is": at the first verb in -ing, else at a preposition or article, else at the last
// word.
size_t predicate_start(const Tokens& words) {
  const size_t first = is_listed(words[1], kDeterminers) && words.size() > 3 ? 3 : 2;
  const auto find = [&](auto starts) {
    const auto found = std::find_if(words.begin() + static_cast<ptrdiff_t>(first), words.end(), starts);
    return static_cast<size_t>(found - words.begin());
  };
  if (is_listed(words[1], kPronouns) && (words.size() == 3 || is_listed(words[2], kArticles) ||
                                         is_listed(words[2], kPrepositions) || words[1].size() < 4)) {
    return 2;
  }
  if (words.size() > 4 && words[words.size() - 2] == "and") return words.size() - 3;  // "black and white"
  const size_t verb =
      find([](const std::string& word) { return has_suffix(word, "ing") && !is_listed(word, kNamedIng); });
  if (verb < words.size()) return words[verb - 1] == "not" ? verb - 1 : verb;
  const size_t other =
      find([](const std::string& word) { return is_listed(word, kPrepositions) || is_listed(word, kArticles); });
  return other < words.size() ? other : words.size() - 1;
}

std::string third_person(const std::string& verb) {
  if (verb == "have") return "has";
  if (has_suffix(verb, "y") && verb != "play") return verb.substr(0, verb.size() - 1) + "ies";
  return verb + (has_suffix(verb, "ch") ? "es" : "s");
}

// As captions name it: "a dog" for "the dog". Nothing for "it": "is this a beach?" asks for a beach.
std::string subject_of(const std::string& subject) {
  if (subject == "he") return "a man";
  if (subject == "she") return "a woman";
  if (is_listed(subject, "they everyone everybody")) return "people";
  if (is_listed(subject, "anyone anybody someone somebody nobody")) return "a person";
  if (is_listed(subject, "it this that these those")) return "";
  const size_t space = subject.find(' ');
  const std::string first = subject.substr(0, space);
  if (space == std::string::npos || !is_listed(first, kDeterminers) || is_listed(first, kArticles)) return subject;
  const std::string rest = subject.substr(space + 1);
  return is_listed(rest, "picture image photo photograph scene") ? "" : with_article(rest);
}

std::optional<Clause> clause_of(const Tokens& words) {
  if (words.size() < 3 || is_listed(words[1], kWhatOther)) return std::nullopt;
  Clause clause;
  size_t start = 0;
  if (is_listed(words[0], kBe)) {
    start = predicate_start(words);
    clause.verb = words[0] == "was" ? "is" : words[0] == "were" ? "are" : words[0];
  } else if (words[0] == "does" || words[0] == "do") {
    const auto verb =
        std::find_if(words.begin() + 2, words.end(), [](const auto& each) { return is_listed(each, kVerbs); });
    if (verb == words.end()) return std::nullopt;
    clause.verb = words[0] == "does" ? third_person(*verb) : *verb;
    start = static_cast<size_t>(verb - words.begin()) + 1;
  }
  if (start < 2) return std::nullopt;
  const size_t end = start - (words[0][0] == 'd' ? 1 : 0);
  clause.subject = joined(words.begin() + 1, words.begin() + static_cast<ptrdiff_t>(end));
  if (start < words.size() && (words[start] == "not" || words[start] == "no")) {
    clause.negated = true;
    ++start;
  }
  clause.predicate = joined(words.begin() + static_cast<ptrdiff_t>(start), words.end());
  if (clause.predicate.empty()) {
    if (is_listed(words[0], kBe)) return std::nullopt;
    clause.verb.swap(clause.predicate);
  }
  if (clause.subject == "nobody") clause.negated = !clause.negated;
  clause.subject = subject_of(clause.subject);
  return clause;
}

// "riding " of "riding a horse", if what else is offered begins with an article, too.
size_t shared_start(const std::string& predicate, const std::string& other) {
  const size_t article = std::min(predicate.find(" a "), predicate.find(" an "));
  const bool named = other.compare(0, 2, "a ") == 0 || other.compare(0, 3, "an ") == 0;
  return named && article != std::string::npos ? article + 1 : 0;
}

// What is seen where something is "indoors", beside that word, which captions seldom say.
constexpr std::string_view kInside = "indoors inside", kOutside = "outdoors outside";

bool is_colour(const std::string& word) {
  return std::find(colours().begin(), colours().end(), word) != colours().end();
}

// "what color is the bus?" for "is the bus red"
std::string colour_question(const Tokens& words) {
  return "what color " + joined(words.begin(), std::find(words.begin(), words.end() - 1, "not")) + "?";
}

}  // namespace

const std::vector<std::string>& colours() {
  static const std::vector<std::string> all = {"red",  "orange", "yellow", "green", "blue", "purple",
                                               "pink", "brown",  "black",  "white", "gray"};
  return all;
}

std::optional<ShortQuestion> statement_question(const std::string& text) {
  using Kind = ShortQuestion::Kind;
  const std::optional<Clause> clause = clause_of(tokens_of(text));
  if (!clause) return std::nullopt;
  const Tokens words = tokens_of(text);
  if (is_colour(clause->predicate) && is_listed(words[0], kBe)) {
    return ShortQuestion{Kind::kColour, colour_question(words), "", clause->negated, {clause->predicate}};
  }
  return clause->stating(clause->predicate);
}

std::optional<ShortQuestion> choice_question(const std::string& text) {
  const size_t at = text.find(" or ");
  if (at == std::string::npos || text.find(" or ", at + 4) != std::string::npos) return std::nullopt;
  std::string last = text.substr(at + 4), before = text.substr(0, at);
  std::vector<std::string> offered;
  for (size_t comma; (comma = before.rfind(", ")) != std::string::npos && comma != 0; before.erase(comma)) {
    const std::string option(stripped(before.substr(comma + 2)));
    if (!option.empty()) offered.insert(offered.begin(), option);
  }
  while (!before.empty() && before.back() == ',') before.pop_back();
  const Tokens words = tokens_of(before);
  for (const char* again : {"is it ", "are they ", "is there ", "does it have ", "is he ", "is she "}) {
    if (last.compare(0, std::string_view(again).size(), again) == 0) last.erase(0, std::string_view(again).size());
  }
  std::optional<Clause> clause = clause_of(words);
  if (words.size() > 2 && words[1] == "there" && is_listed(words[0], kBe)) {
    clause = Clause{"", "", joined(words.begin() + 2, words.end())};
  }
  static constexpr std::string_view wh = "what which who where when how";
  const bool wh_question = !words.empty() && is_listed(words[0], wh);
  std::string shared;
  if (clause) {
    const size_t start = shared_start(clause->predicate, last);
    shared = clause->predicate.substr(0, start);
    offered.insert(offered.begin(), clause->predicate.substr(start));
  } else if (!wh_question) {
    offered.insert(offered.begin(), before);
  }
  offered.push_back(last);
  ShortQuestion found{ShortQuestion::Kind::kChoice, text + "?"};
  for (const std::string& option : offered) {
    if (option.empty() || words_of(option).size() > kMaxOption || tokens_of(option)[0] == "does") return std::nullopt;
    found.choices.push_back(without_article(option));
    if (clause) found.statements.push_back(clause->stating(shared + option));
    if (!clause && !wh_question) found.statements.push_back({ShortQuestion::Kind::kPresence, option});
  }
  if (found.choices.size() < 2) return std::nullopt;
  const auto is_place = [](const std::string& choice) {
    return is_listed(choice, kInside) || is_listed(choice, kOutside);
  };
  if ((!clause || clause->subject.empty()) && std::all_of(found.choices.begin(), found.choices.end(), is_place)) {
    found.statements.clear();
    for (const std::string& choice : found.choices) {
      const bool inside = is_listed(choice, kInside);
      for (const char* seen : {inside ? "indoors" : "outdoors", inside ? "furniture" : "a street"}) {
        found.statements.push_back({ShortQuestion::Kind::kPresence, seen});
      }
    }
  }
  if (std::all_of(offered.begin(), offered.end(), is_colour)) {
    found.statements.clear();
    if (clause && words.size() > 2) found.text = colour_question(words);
  }
  return found;
}

}  // namespace blip2rt
