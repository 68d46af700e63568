// Questions that need no generated answer: whether something is there or true, how many, which of two, and what no
// picture tells. Knows English, no model. Capitals make no difference to it.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

struct ShortQuestion {
  enum class Kind {
    kPresence,   // whether `text` is there: "a dog"
    kStatement,  // whether `text` is true: "a dog is swimming"
    kColour,     // whether choices[0] answers `text`: "what color is the dog?"
    kNumber,     // how many: `text` is "how many dogs are there?"
    kChoice,     // which of `choices` answers `text`
    kFixed       // `text` answers what no picture tells
  };
  Kind kind;
  std::string text;
  std::string subject = {};               // of a statement: "a dog"
  bool negated = false;                   // whether a yes says that it is not so
  std::vector<std::string> choices = {};  // "red", "blue"
  // What each choice states, as many for each; or that what is counted is there; or nothing.
  std::vector<ShortQuestion> statements = {};
};

// Reads a question; nothing if its answer must be generated.
std::optional<ShortQuestion> short_question(std::string_view question);

// Returns "how many dogs are there?" for "### User: COUNT the dogs": lower case, no role labels, a question mark if
// there is one sentence. A text of several sentences is only stripped.
std::string plain_question(std::string_view question);

// Returns "a cat" for "Is there a cat in the picture?"; nothing if a text does not ask whether something is there.
std::optional<std::string> phrase_of(std::string_view question);

// Returns what a question with "is" or "does" states: "a dog is swimming" for "is the dog swimming?". The text is in
// lower case, without a question mark.
std::optional<ShortQuestion> statement_question(const std::string& text);

// Returns what a question offers: "red", "blue" for "is the bus red or blue?".
std::optional<ShortQuestion> choice_question(const std::string& text);

// Colours that questions ask about.
const std::vector<std::string>& colours();

// Returns the answer to a text that no picture answers, such as "how many calories has it?"; else nothing.
std::optional<std::string> fixed_answer(std::string_view text);

}  // namespace blip2rt
