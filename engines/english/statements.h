// Statements about a picture: phrases and their forms. Knows English, no model. Capitals make no difference to it.
#pragma once

#include <string>
#include <string_view>

namespace blip2rt {

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
