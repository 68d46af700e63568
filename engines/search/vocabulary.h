// The bytes of every token's text: a token may hold part of a character.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "search/search_block.h"

namespace blip2rt {

class Vocabulary {
 public:
  void add(std::string_view token) {
    bytes_ += token;
    ends_.push_back(bytes_.size());
  }

  size_t size() const { return ends_.size() - 1; }
  const std::vector<uint64_t>& ends() const { return ends_; }
  const std::string& bytes() const { return bytes_; }
  std::string_view text(size_t token) const {
    return std::string_view(bytes_).substr(ends_[token], ends_[token + 1] - ends_[token]);
  }
  VocabularyView view() const { return {ends_.data(), bytes_.data()}; }

 private:
  std::string bytes_;              // all tokens concatenated
  std::vector<uint64_t> ends_{0};  // token i is bytes [ends_[i], ends_[i + 1])
};

}  // namespace blip2rt
