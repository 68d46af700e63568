// Brings questions into a plain form, and matches those whether something is there by regular expressions.
#include "english/questions.h"

#include "base/parse.h"
#include "base/regex.h"
#include "base/unicode.h"
#include "english/statements.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxCharacters = 300;  // of a question that is read at all

constexpr std::string_view kAnyone = "anyone|anybody|someone|somebody|any people|any person|people|any persons|a human";

// The first group is what a question asks for.
const std::vector<Regex>& questions() {
  static const std::vector<Regex> patterns = [] {
    const std::string picture = "(?:the|this|that) (?:picture|image|photo|photograph|scene|shot|frame|view|snapshot)";
    const std::string shown = "(?:visible |present |shown )?";
    const std::string place =
        "(?: (?:at all|anywhere|somewhere|here|visible|present|shown|in it|" + shown + "(?:in|on) " + picture + "))";
    const std::string indefinite = "(?!(?:the|this|that|these|those|it|he|she|they|we|you|i) )";
    std::vector<Regex> made;
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
  static constexpr std::string_view other =
      "no not none nothing or else same more less fewer many much several both another other only one two three four "
      "five six seven eight nine ten anything something everything what which who why how where when difference";
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
    if (!word.empty() && (is_number || is_listed(word, other))) return true;
    word.clear();
    is_number = true;
  }
  return false;
}

bool is_instruction(std::string_view sentence) {
  static const Regex pattern("^(?:please )?(?:just |only )?(?:answer|reply|respond|say)\\b");
  return pattern.is_in(sentence);
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

// In lower case, without the roles that chat templates write, as in "### User: ... Answer:".
std::string without_roles(std::string_view question) {
  static const Regex before("^(?:#* ?(?:user|human|question|instruction|q) ?: ?)+"),
      after(" ?#* ?(?:(?:short )?answer|assistant|a) ?:$");
  std::string text = joined_words(words_of(lower_text(question)));
  for (size_t at; (at = text.find("\u2019")) != std::string::npos;) text.replace(at, 3, "'");
  return after.replaced(before.replaced(text, ""), "");
}

// "is there a dog" for "isn't there a dog": that is a yes if there is one. "count the dogs" asks how many there are.
std::string reworded(const std::string& sentence) {
  static const Regex rules[] = {
      Regex("^(?:(?:hello|hi|hey|please|ok|so|and)\\b,? )+"),
      Regex("^(?:(?:can|could|would) you )?(?:please )?tell me\\b,? ?(?:if |whether )?"),
      Regex("^(?:(is|are) (?:thee|tere|ther|thre)|(is) three) "),
      Regex("^wh?a?t "),
      Regex("^how (?:man|may|mny) "),
      Regex("^there (is|are) (.+?)(?:, (?:right|correct|yes))?$"),
      Regex("^(what|who|where|when|how|it|he|she|there)'s\\b"),
      Regex("^(is|are|was|were|do|does|did)n'?t "),
      Regex("^(?:count|(?:what is |give |tell me )?(?:the )?(?:number|count) of) (?:all )?(?:the |all )?"
            "(.+?)(?: (?:here|there|in (?:the|this|that) (?:picture|image|photo)))?$"),
      Regex("^any (.+?)(?: (?:here|there|around))?$"),
      Regex(",? (?:yes or no|or not|or no)$"),
  };
  static const char* const forms[] = {
      "",      "",    "$1$2 there ",           "what ",           "how many ", "$1 there $2",
      "$1 is", "$1 ", "how many $1 are there", "is there any $1", ""};
  std::string text = sentence;
  for (size_t i = 0; i < std::size(rules); ++i) text = rules[i].replaced(text, forms[i]);
  return text;
}

// The only sentence of a question but for requests to be brief, in lower case; empty if there are more.
std::string sentence_of(std::string_view question) {
  if (count_characters(question) > kMaxCharacters) return "";
  std::vector<std::string> asked;
  for (const std::string& sentence : sentences_of(without_roles(question))) {
    const std::string part = trimmed(sentence, "?!. ");
    if (!part.empty() && !is_instruction(part) && part != "yes or no") asked.push_back(part);
  }
  if (asked.size() != 1) return "";
  std::string text = asked[0];
  if (begins_with(text, "please ")) text.erase(0, 7);
  if (ends_with(text, " please")) text.resize(text.size() - 7);
  return reworded(trimmed(text, ", ", false));
}

std::optional<std::string> phrase_in(const std::string& text) {
  for (const Regex& pattern : questions()) {
    const auto found = pattern.match(text);
    if (!found || asks_otherwise((*found)[1])) continue;
    const std::string& what = (*found)[1];
    if (is_listed(what, kAnyone, '|')) return "a person";
    for (const char* word : {"any ", "some ", "the "}) {
      if (begins_with(what, word)) return what.substr(std::string_view(word).size());
    }
    return what;
  }
  return std::nullopt;
}

// "dog" for "dogs", as plural_of makes it; other words stay.
std::string singular_of(const std::string& things) {
  if (things == "children") return "child";
  for (const auto& [end, single] :
       {std::pair("men", "man"), std::pair("ies", "y"), std::pair("es", ""), std::pair("s", "")}) {
    if (!ends_with(things, end)) continue;
    const std::string thing = things.substr(0, things.size() - std::string_view(end).size()) + single;
    if (plural_of(thing) == things) return thing;
  }
  return things;
}

// "how many dogs are there", and whether there is "a dog", unless it counts nothing whose absence could be judged.
ShortQuestion number_question(const std::string& question) {
  static const Regex pattern(
      "how many (?:different |visible )?(\\w+(?: \\w+)?)(?: (?:are|is) (?:there|visible|shown|present)| (?:do|can) you "
      "see)"
      "(?: here| at all| in (?:the|this|that|it)(?: \\w+)?)*");
  const auto found = pattern.match(question);
  ShortQuestion number{ShortQuestion::Kind::kNumber, question + "?"};
  if (found && !asks_otherwise((*found)[1]) && (*found)[1] != "things") {
    const std::string& things = (*found)[1];
    const std::string thing = is_listed(things, kAnyone, '|') ? "a person" : with_article(singular_of(things));
    number.statements.push_back({ShortQuestion::Kind::kPresence, thing});
  }
  return number;
}

}  // namespace

std::optional<std::string> phrase_of(std::string_view question) { return phrase_in(sentence_of(question)); }

std::string plain_question(std::string_view question) {
  static const Regex asks(
      "^(?:what|which|who|whose|where|when|why|how|is|are|was|were|do|does|did|can|could|has|have)\\b");
  const std::string text = sentence_of(question);
  if (text.empty()) return std::string(stripped(question));
  return asks.is_in(text) ? text + "?" : text;
}

std::optional<ShortQuestion> short_question(std::string_view question) {
  using Kind = ShortQuestion::Kind;
  const std::string text = sentence_of(question);
  for (const std::string_view asked : {question, std::string_view(text)}) {
    if (std::optional<std::string> answer = fixed_answer(asked)) return ShortQuestion{Kind::kFixed, *answer};
  }
  if (text.empty()) return std::nullopt;
  static const Regex absence(
      "(?:is|are) there (?:no |without |not (?:any |an? )?)(.+)|(?:is|are) (?:there )?(nobody|no one|no person|no "
      "people)\\b.*");
  if (const auto found = absence.match(text)) {
    const std::string& some = (*found)[1];
    const std::string what = some.empty() || begins_with(text, "is there no one") ? "anyone" : some;
    const std::optional<std::string> phrase = phrase_in("is there " + what);
    if (phrase) return ShortQuestion{Kind::kPresence, *phrase, "", true};
  }
  if (std::optional<std::string> phrase = phrase_in(text)) return ShortQuestion{Kind::kPresence, *phrase};
  if (begins_with(text, "how many ") && text.find('?') == std::string::npos) return number_question(text);
  if (text.find(" or ") != std::string::npos) return choice_question(text);
  return statement_question(text);
}

}  // namespace blip2rt
