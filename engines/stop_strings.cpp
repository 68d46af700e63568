// Looks for stop strings at the end of a text of tokens. Knows bytes.
#include "stop_strings.h"

#include <algorithm>

namespace blip2rt {

Vocabulary::Vocabulary(const std::vector<std::string>& tokens) {
  size_t total = 0;
  for (const auto& token : tokens) total += token.size();
  bytes_.reserve(total);
  ends_.reserve(tokens.size() + 1);
  for (const auto& token : tokens) {
    bytes_ += token;
    ends_.push_back(bytes_.size());
    longest_ = std::max(longest_, token.size());
  }
}

StopStrings::StopStrings(const std::vector<std::string>& strings, const Vocabulary* vocabulary)
    : strings_(strings), vocabulary_(vocabulary) {
  for (const auto& text : strings) longest_ = std::max(longest_, text.size());
  if (!strings.empty()) tail_.reserve(longest_ + 2 * vocabulary->longest());
}

bool StopStrings::completed_by(int64_t token, const int64_t* history, size_t length) {
  if (strings_.empty()) return false;
  const std::string_view last = (*vocabulary_)[token];
  if (last.empty()) return false;
  size_t first = length, before = 0;  // of the tokens that a stop string may begin in, and their bytes
  while (first > 0 && before + 1 < longest_) before += (*vocabulary_)[history[--first]].size();
  tail_.clear();
  for (; first < length; ++first) tail_ += (*vocabulary_)[history[first]];
  tail_ += last;
  for (const auto& text : strings_) {
    // An occurrence that begins here or later reaches into the last token.
    const size_t begin = before + 1 > text.size() ? before + 1 - text.size() : 0;
    if (tail_.find(text, begin) != std::string::npos) return true;
  }
  return false;
}

}  // namespace blip2rt
