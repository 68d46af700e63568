// Forbids that a text says a content word twice, as in "a boat with a boat". Knows English function words, which may
// repeat. Any thread may use one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "search/vocabulary.h"

namespace blip2rt {

class RepeatedWords {
 public:
  explicit RepeatedWords(const Vocabulary& vocabulary);

  // Sets the logits (V) of tokens that would complete a content word of the `count` tokens again to minus infinity.
  void forbid(const int32_t* tokens, int count, float* logits) const;

  size_t vocab_size() const { return kinds_.size(); }

 private:
  enum class Kind : uint8_t { kInside, kFunction, kContent };  // inside a word, or the start of one

  Kind kind(int32_t token) const { return kinds_[static_cast<size_t>(token)]; }
  int end_of_word(const int32_t* tokens, int start, int count) const;
  int32_t in_text(const int32_t* tokens, int at) const;

  std::vector<Kind> kinds_;      // (V)
  std::vector<int32_t> spaced_;  // (V): the token with a space before it, if there is one; else the same
};

}  // namespace blip2rt
