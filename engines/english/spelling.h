// Corrects misspelt words of questions. Knows English, no model.
#pragma once

#include <string>

namespace blip2rt {

// Returns "is there a horse" for "is thre a hosre": corrects unknown words with two neighbouring letters swapped, and
// words like "there" that lack a letter. Words of fewer than four letters stay. `text`: in lower case.
std::string respelled(const std::string& text);

}  // namespace blip2rt
