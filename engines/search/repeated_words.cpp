#include "search/repeated_words.h"

#include <algorithm>
#include <limits>
#include <string_view>

#include "base/parse.h"

namespace blip2rt {
namespace {

constexpr std::string_view kFunctionWords =
    "a an the this that these those some another other each its his her their it he she they them him one two three "
    "four and or but with without of in on at to by for from as into onto over under up down out off near next front "
    "back top side behind beside around through along while who which is are be being has have there not no";

// Whether a token's text, without a space before it, can be part of a word.
bool is_word(std::string_view text) {
  const auto c = static_cast<unsigned char>(text.empty() ? '\0' : text.front());
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '\'' ||
         c >= 0x80;
}

}  // namespace

RepeatedWords::Kind RepeatedWords::kind(int32_t token) const {
  std::string_view text = vocabulary_->text(static_cast<size_t>(token));
  const bool is_start = !text.empty() && text.front() == ' ';
  if (is_start) text.remove_prefix(1);
  if (is_word(text) && !is_start) return Kind::kInside;
  return is_word(text) && !is_listed(text, kFunctionWords) ? Kind::kContent : Kind::kFunction;
}

// A text's first token has no space before it.
int32_t RepeatedWords::in_text(const int32_t* tokens, int at) const {
  if (at > 0) return tokens[at];
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto [known, is_new] = spaced_.emplace(tokens[0], tokens[0]);
  if (!is_new) return known->second;
  std::string_view text = vocabulary_->text(static_cast<size_t>(tokens[0]));
  if (text.substr(0, 1) == " ") text.remove_prefix(1);
  for (size_t token = 0; token < vocab_size(); ++token) {
    const std::string_view other = vocabulary_->text(token);
    if (other.size() == text.size() + 1 && other.front() == ' ' && other.substr(1) == text) {
      known->second = static_cast<int32_t>(token);
      break;
    }
  }
  return known->second;
}

int RepeatedWords::end_of_word(const int32_t* tokens, int start, int count) const {
  int end = start + 1;
  while (end < count && kind(tokens[end]) == Kind::kInside) ++end;
  return end;
}

void RepeatedWords::forbid(const int32_t* tokens, int count, float* logits) const {
  int last = count - 1;  // where the last word starts, which the next token may continue
  while (last > 0 && kind(tokens[last]) == Kind::kInside) --last;
  for (int start = 0, end = 0; start < count; start = end) {
    end = end_of_word(tokens, start, count);
    if (kind(in_text(tokens, start)) != Kind::kContent) continue;
    const int length = end - start;
    const bool continues = length > 1 && last >= end && count - last == length - 1 &&
                           in_text(tokens, start) == tokens[last] &&
                           std::equal(tokens + start + 1, tokens + end - 1, tokens + last + 1);
    if (length == 1) logits[in_text(tokens, start)] = -std::numeric_limits<float>::infinity();
    if (continues) logits[tokens[end - 1]] = -std::numeric_limits<float>::infinity();
  }
}

}  // namespace blip2rt
