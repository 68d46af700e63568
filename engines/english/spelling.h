// Corrects misspelt words of questions. Knows English, no model.
#pragma once

#include <functional>
#include <string>

namespace blip2rt {

// Returns "is there a horse?" for "is there a hrse?": corrects words that are none, if adding a letter, swapping
// two or halving a double one makes one word of labels or of questions, and one only. `is_word`: of lower case.
std::string respelled(const std::string& text, const std::function<bool(const std::string& word)>& is_word);

}  // namespace blip2rt
