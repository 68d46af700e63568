// Finds texts that no picture answers, by their words: facts beyond it, what people believe or are, other languages.
#include <algorithm>
#include <regex>
#include <set>

#include "base/unicode.h"
#include "english/questions.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

using Words = std::set<std::string, std::less<>>;

constexpr const char* kUnknown = "I cannot tell from the picture.";
constexpr const char* kEnglishOnly = "I only understand English.";
constexpr const char* kGreeting = "Ask me about the picture.";
constexpr const char* kUnsure = "I may be wrong: please check the picture.";
constexpr uint32_t kLastLatin = 0x24F;

const Words kPersonal = {"gay",         "lesbian",     "homosexual",  "heterosexual", "bisexual",   "sexuality",
                         "transgender", "criminal",    "criminals",   "thief",        "thieves",    "terrorist",
                         "terrorists",  "religion",    "muslim",      "muslims",      "christians", "jews",
                         "atheist",     "disease",     "diseases",    "illness",      "cancer",     "autistic",
                         "autism",      "depression",  "pregnant",    "diabetic",     "diabetes",   "ethnicity",
                         "ethnic",      "ethnicities", "nationality", "caucasian",    "hispanic",   "latino",
                         "immigrant",   "immigrants",  "republican",  "democrat",     "alcoholic",  "hiv"};
const Words kForeign = {"un",      "est",    "une",     "des",     "les",    "qui",   "quoi",    "combien", "quelle",
                        "quel",    "dans",   "sur",     "wie",     "viele",  "ist",   "ein",     "eine",    "das",
                        "gibt",    "welche", "farbe",   "sind",    "auf",    "hay",   "que",     "cuantos", "cuántos",
                        "cuántas", "qué",    "esta",    "imagen",  "el",     "los",   "las",     "il",      "che",
                        "cosa",    "quanti", "quante",  "sono",    "c'è",    "nella", "foto",    "è",       "di",
                        "há",      "uma",    "quantos", "quantas", "imagem", "não",   "são",     "wat",     "hoeveel",
                        "een",     "het",    "c'est",   "está",    "dónde",  "où",    "couleur", "animal",  "was",
                        "der",     "im",     "bild",    "y"};
const Words kShared = {"animal", "was", "foto", "im", "di", "das", "il", "que", "y"};  // words of English texts, too
const Words kEnglish = {"is",  "are", "the", "what", "how", "do",    "does", "there", "of",   "this",
                        "who", "in",  "you", "any",  "see", "which", "it",   "where", "with", "and"};

const std::regex& beyond_pictures() {
  static const std::regex pattern(
      "\\b(calorie|calories|kcal|carbs)\\b|\\bwhat time is it\\b|\\bwhat is the (exact )?(time|date)\\b"
      "|\\bwhat (year|date|day of the week|month)\\b|\\bwhen was (this|the|it)\\b"
      "|\\b(who|whom) (took|made|painted|shot|owns|is this|is he|is she|is the photographer)\\b"
      "|\\bwhat is (his|her|their|the (man|woman|person|boy|girl|child|dog|cat)'?s?) names?\\b|\\bnames? of the "
      "(man|woman|person|people|boy|girl|child|dog|cat|photographer|owner)\\b"
      "|\\b(phone number|email|address of|how much (does|do|did|is|are|would)|how old|what does .* cost|the price|how "
      "tall|"
      "how heavy|weigh|weighs)\\b"
      "|\\b(what|which|his|her|their|person's|man's|woman's) race\\b|\\b(in love|having an affair)\\b"
      "|^is (he|she|the (man|woman|person|boy|girl)|this (man|woman|person)) (black|white|brown|straight)$"
      "|\\b(he|she|they|man|woman|person|people|boy|girl|child|men|women|children|anyone|someone)\\b.*\\b(asian|"
      "african|"
      "arab|illegal|illegally|crime|healthy|sick|ill|religious|christian|jewish|hindu|catholic|disabled|sexual|"
      "depressed|addicted|mentally)\\b");
  return pattern;
}

// Whether most letters are of another script than English has.
bool is_other_script(std::string_view text) {
  size_t letters = 0, others = 0;
  for (size_t at = 0; at < text.size();) {
    const uint32_t character = next_character(text, at);
    if (!is_word_character(character)) continue;
    ++letters;
    others += character > kLastLatin;
  }
  return 2 * others > letters;
}

}  // namespace

std::optional<std::string> fixed_answer(std::string_view text) {
  if (is_other_script(text) || text.find("\u00bf") != std::string_view::npos) return kEnglishOnly;
  std::string plain = lower_text(text);
  std::replace_if(
      plain.begin(), plain.end(),
      [](char c) { return std::string_view("?!.,;:\"()").find(c) != std::string_view::npos; }, ' ');
  std::string joined;
  size_t foreign = 0, certain = 0, english = 0;
  for (const std::string_view word : words_of(plain)) {
    if (kPersonal.count(word) != 0) return kUnknown;
    foreign += kForeign.count(word);
    certain += kForeign.count(word) - kShared.count(word);
    english += kEnglish.count(word);
    joined += (joined.empty() ? "" : " ") + std::string(word);
  }
  if (foreign > 1 && certain > 0 && english == 0) return kEnglishOnly;
  static const Words greetings = {"hello",    "hi",           "hey",    "hello there",
                                  "hi there", "good morning", "thanks", "thank you"};
  static const std::regex doubts("are you (sure|certain)\\b.*|really");
  if (greetings.count(joined) != 0) return kGreeting;
  if (std::regex_match(joined, doubts)) return kUnsure;
  if (joined.size() <= 300 && std::regex_search(joined, beyond_pictures())) return kUnknown;
  return std::nullopt;
}

}  // namespace blip2rt
