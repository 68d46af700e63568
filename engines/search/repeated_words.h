// Forbids that a text says a content word twice, as in "a boat with a boat". Knows English function words, which may
// repeat. Any thread may use one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "search/vocabulary.h"

namespace blip2rt {

class RepeatedWords {
 public:
  explicit RepeatedWords(std::shared_ptr<const Vocabulary> vocabulary) : vocabulary_(std::move(vocabulary)) {}

  // Sets the logits (V) of tokens that would complete a content word of the `count` tokens again to minus infinity.
  void forbid(const int32_t* tokens, int count, float* logits) const;

  size_t vocab_size() const { return vocabulary_->size(); }

 private:
  enum class Kind : uint8_t { kInside, kFunction, kContent };  // inside a word, or the start of one

  Kind kind(int32_t token) const;
  int end_of_word(const int32_t* tokens, int start, int count) const;
  int32_t in_text(const int32_t* tokens, int at) const;

  std::shared_ptr<const Vocabulary> vocabulary_;
  mutable std::mutex mutex_;
  mutable std::unordered_map<int32_t, int32_t> spaced_;  // first tokens -> with a space before, if there is one
};

}  // namespace blip2rt
