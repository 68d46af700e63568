// Questions that need no generated answer: whether a picture shows something, and how many. Knows English, no model.
// Capitals make no difference to it.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace blip2rt {

// Returns "a cat" for "Is there a cat in the picture?"; nothing if a text does not ask whether something is there.
std::optional<std::string> phrase_of(std::string_view question);

// Returns "how many cats are there?" for "How many cats are there? Answer briefly."; nothing for other questions.
std::optional<std::string> number_question(std::string_view question);

// Whether a text is so short that it names a thing, as "a black cat" does. Longer ones are sentences.
bool is_phrase(std::string_view text);

// Returns "is there a cat?" for "a cat".
std::string question_of(std::string_view phrase);

// Returns "a cat" for "cat". Plurals, mass nouns, sentences and phrases with an article stay.
std::string with_article(const std::string& phrase);

// Returns "cat" for "a cat".
std::string without_article(const std::string& phrase);

// Returns "cats" for "cat", by the last word's ending.
std::string plural_of(const std::string& noun);

}  // namespace blip2rt
