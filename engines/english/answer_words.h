// What a question says about the words of its answer. Knows English, no model.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "search/vocabulary.h"

namespace blip2rt {

// Whether a question asks for things, as "what sit on the bench?" does. "What are the men holding?" does not.
bool asks_for_plural(const std::string& question);

// Whether a question names its answers, as "is it red or blue?" does.
bool offers_choice(const std::string& question);

// Whether a word, or a token with the space before it, ends like a plural: "dogs", " people".
bool is_plural(std::string_view word);

// Which tokens name one thing: those whose plural is a token, too, as that of " dog" is. Of a word of several tokens,
// the first says nothing about its number.
std::vector<bool> singular_tokens(const Vocabulary& vocabulary);

}  // namespace blip2rt
