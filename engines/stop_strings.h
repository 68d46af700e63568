// Tells when a text ends in a stop string: the bytes of every token, and a look at the last few. Knows bytes; not where
// tokens come from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

// The text of every token, as bytes: a token may hold half a character.
class Vocabulary {
 public:
  explicit Vocabulary(const std::vector<std::string>& tokens);

  size_t size() const { return ends_.size() - 1; }
  size_t longest() const { return longest_; }
  std::string_view operator[](int64_t token) const {
    const auto i = static_cast<size_t>(token);
    return {bytes_.data() + ends_[i], ends_[i + 1] - ends_[i]};
  }

 private:
  std::string bytes_;            // of all tokens, one after the other
  std::vector<size_t> ends_{0};  // token i is bytes [ends_[i], ends_[i + 1])
  size_t longest_ = 0;
};

class StopStrings {
 public:
  // Both must outlive this. Without strings the vocabulary may be null.
  StopStrings(const std::vector<std::string>& strings, const Vocabulary* vocabulary);

  // Whether `token`, coming after `history` (length), completes a stop string: one ends within the token's text.
  bool completed_by(int64_t token, const int64_t* history, size_t length);

 private:
  const std::vector<std::string>& strings_;
  const Vocabulary* vocabulary_;
  size_t longest_ = 0;
  std::string tail_;  // scratch
};

}  // namespace blip2rt
