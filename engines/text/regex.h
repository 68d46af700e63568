// Regular expressions of tokenizer files, as Oniguruma matches them: the part of its syntax that published tokenizers
// use.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

namespace blip2rt {

class Regex {
 public:
  // Throws TokenizerError of the kind kUnknown if the pattern uses anything else.
  explicit Regex(std::string_view pattern);

  // Finds the first match that begins at `from` or later in valid UTF-8. Returns its range, or {npos, npos}. Throws
  // TokenizerError of the kind kText if the pattern backtracks too often.
  std::pair<size_t, size_t> find(std::string_view text, size_t from) const;

 private:
  friend class RegexParser;
  friend class RegexMatcher;
  enum Op : uint8_t { kSet, kSplit, kJump, kLook, kNoLook, kAtomic, kLineStart, kLineEnd, kEnd };

  // What one item of a set contains: characters from `low` to `high` that have one of the categories, \w or \s.
  struct Item {
    uint32_t low = 0, high = 0x10FFFF, categories = UINT32_MAX;
    bool word = false, space = false, negated = false;
  };
  struct Set {
    std::vector<Item> items;
    bool negated = false;
  };
  struct Instruction {
    Op op;
    uint32_t first, second;  // a set; or addresses: kSplit tries the first one first, the others continue at `second`
  };

  bool contains(const Set& set, uint32_t character) const;

  std::vector<Set> sets_;
  std::vector<Instruction> program_;
};

}  // namespace blip2rt
