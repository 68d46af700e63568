// Finds texts that no picture answers, by their words: facts beyond it, what people believe or are, other languages.
#include <algorithm>

#include "base/parse.h"
#include "base/regex.h"
#include "base/unicode.h"
#include "english/questions.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

constexpr const char* kUnknown = "I cannot tell from the picture.";
constexpr const char* kEnglishOnly = "I only understand English.";
constexpr const char* kGreeting = "Ask me about the picture.";
constexpr const char* kUnsure = "I may be wrong: please check the picture.";
constexpr uint32_t kLastLatin = 0x24F;

constexpr std::string_view kForeign =
    "un est une des les qui quoi combien quelle quel dans sur wie viele ist ein eine das gibt welche farbe sind auf "
    "hay que cuantos cuántos cuántas qué esta imagen el los las il che cosa quanti quante sono c'è nella foto è di há "
    "uma quantos quantas imagem não são wat hoeveel een het c'est está dónde où couleur animal was der im bild y";
constexpr std::string_view kShared = "animal was foto im di das il que y";  // words of English texts, too
constexpr std::string_view kEnglish =
    "is are the what how do does there of this who in you any see which it where with and";

const Regex& beyond_pictures() {
  static const std::string person =
      "\\b(?:he|she|they|his|her|their|man|woman|person|people|boy|girl|child|kid|baby|guys?|lady|ladies|couple|family|"
      "patient|bride|groom|players?|runners?|riders?|workers?|drivers?|soldiers?|tourists?|dancers?|men|women|boys|"
      "girls|children|kids|person's|man's|woman's|anyone|someone)\\b";
  static const std::string origin =
      "(?:black|white|brown|\\w{2,}(?:ian|ish|ese)|\\w{3,}(?:ean|ican)|french|german|dutch|greek|arab|thai|native)";
  static const std::string anywhere =
      "\\b(?:gays?|lesbians?|homosexual\\w*|heterosexual\\w*|bisexual\\w*|asexual|p(?:a?e)dophile\\w*|romantic\\w*|"
      "attracted "
      "to|queer|lgbt\\w*|sexual\\w*|transgender\\w*|criminals?|thief|thieves|terrorist\\w*|murder\\w*|robbers?|"
      "burglars?|rapists?|prostitutes?|gangsters?|shoplift\\w*|crooks?|convicts?|nazis?|communists?|religions?|muslims?"
      "|islam\\w*|christians|jews|atheists?|mormons?|hindus|jehovah's|scientologists?|worship|what "
      "god|jesus|diseases?|illness\\w*|cancer|autis\\w+|adhd|depression|suicidal|dementia|(?:eating|mental|personality)"
      " disorder|pregnan\\w+|diabet\\w+|obes\\w+|anorexi\\w+|bulimi\\w+|hiv|ethnic\\w*|nationalit\\w+|caucasians?|"
      "hispanics?|latin[oa]s?|asians|africans|native american|immigrants?|foreigners?|refugees?|middle "
      "eastern|republicans?|democrats?|crimes?(?! scene)|offenders?|what faith|skin (?:colou?r|tone)|what colou?r .* "
      "skin)\\b";
  static const std::string of_person =
      person +
      ".*\\b(?:asian|african|arab|illegal(?:ly)?|steal\\w*|stole|rob|kill\\w*|prison|jail|arrested|wanted|guilty|"
      "innocent|suspect|suspicious|gang|drug (?:dealer|user|addict)|drugs|addict(?:ed)?|breaking the "
      "law|violent|bully|trust|healthy?|sick|ill|disabled|disability|handicapped|syndrome|anxiety|depressed|mentally|"
      "infected|dying|die|medication|overweight|underweight|fat|cheating on|dates? (?:wo)?men|part of the "
      "world|alcoholic|having a "
      "baby|expecting|religious|christian|jewish|hindu|catholic|buddhists?|sikhs?|god|imam|faith|belie\\w+|go to "
      "church|political|vote|income|heritage|boyfriends?|girlfriends?|having sex|(?:likes?|into|prefers?) "
      "(?:men|women|boys|girls|guys)|love each other|mixed race|heart problem|medical condition)\\b";
  static const std::string trait =
      "(?:straight|bi|trans|rich|poor|smart|intelligent|stupid|single|married|dating|lovers|blind|deaf|drunk|dangerous|"
      "honest|trustworthy|jew|protestants?|americans?|indians?|asians?|africans?)";
  static const Regex pattern(
      "\\b(calorie|calories|kcal|carbs)\\b|\\bwhat time is it\\b|\\bwhat is the (exact )?(time|date)\\b"
      "|\\bwhat (year|date|day of the week|month)\\b|\\bwhen was (this|the|it)\\b"
      "|\\b(who|whom) (took|made|painted|shot|owns|is this|is he|is she|is the photographer)\\b"
      "|\\bwhat is (his|her|their|the (man|woman|person|boy|girl|child|dog|cat)'?s?) names?\\b|\\bnames? of the "
      "(man|woman|person|people|boy|girl|child|dog|cat|photographer|owner)\\b"
      "|\\b(phone number|email|address of|how much (does|do|did|is|are|would)|how old|what does .* cost|the price|how "
      "tall|how heavy|weigh|weighs|in love|having an affair)\\b|\\bbelongs? to$|" +
      anywhere + "|" + of_person + "|((what|which) race\\b.*|race of .*)" + person +
      "$|^(where|(what|which) (country|place)) (is|are|do|does) .*" + person + " (come )?from$|" + person +
      " race\\b|^(is|are|do|does) (the |this |that |these |those )?(\\w+ )?" + person +
      " (looks? |seems? )?(all |half |of )?(from \\w+|" + origin + "|(a |an |each |of )?" + trait +
      ")( or .*| to .*| each other| descent| origin| " + person +
      ")*$|^(how many|(is|are) (there|this|that|these|he|she|they)( an?| any)?) " + origin + " " + person);
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
    foreign += is_listed(word, kForeign);
    certain += is_listed(word, kForeign) - is_listed(word, kShared);
    english += is_listed(word, kEnglish);
    joined += (joined.empty() ? "" : " ") + std::string(word);
  }
  if (foreign > 1 && certain > 0 && english == 0) return kEnglishOnly;
  static constexpr std::string_view greetings = "hello|hi|hey|hello there|hi there|good morning|thanks|thank you";
  static const Regex doubts("^are you (sure|certain)\\b|^really$");
  if (is_listed(joined, greetings, '|')) return kGreeting;
  if (doubts.is_in(joined)) return kUnsure;
  if (joined.size() <= 300 && beyond_pictures().is_in(joined)) return kUnknown;
  return std::nullopt;
}

}  // namespace blip2rt
