// What a question says about the words of its answer. Knows English, no model.
#pragma once

#include <string>
#include <string_view>

namespace blip2rt {

// Whether a question asks for things, as "what are sitting on the bench?" does. "What are the men holding?" does not.
bool asks_for_plural(const std::string& question);

// Whether a question names its answers, as "is it red or blue?" does.
bool offers_choice(const std::string& question);

// Whether a word, or a token with the space before it, ends like a plural: "dogs", " people".
bool is_plural(std::string_view word);

}  // namespace blip2rt
