// Regular expressions, as Oniguruma matches them: the part of its syntax that published tokenizers and our own rules
// use.
#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

class RegexError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Regex {
 public:
  // Begin and end of a match, then those of its groups: npos for a group without part in it.
  using Places = std::vector<size_t>;

  // Throws RegexError, with the pattern in its message, if the pattern uses anything else.
  explicit Regex(std::string_view pattern);

  // Finds the first match that begins at `from` or later in valid UTF-8. All methods throw RegexError if
  // the pattern backtracks too often.
  bool find(std::string_view text, size_t from, Places& places) const;
  bool is_in(std::string_view text) const;

  // Returns the texts of all groups, that of the match first, if the pattern matches the whole text.
  std::optional<std::vector<std::string>> match(std::string_view text) const;

  // Returns the text with `form` for its first match. "$1" is the text of the first group.
  std::string replaced(std::string_view text, std::string_view form) const;

 private:
  friend class RegexParser;
  friend class RegexMatcher;
  enum Op : uint8_t { kSet, kSplit, kJump, kLook, kNoLook, kAtomic, kLineStart, kLineEnd, kWordEdge, kPlace, kEnd };

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
    // A set; the index of a place; or addresses: kSplit tries the first one first, the others continue at `second`.
    uint32_t first, second;
  };

  bool contains(const Set& set, uint32_t character) const;

  std::vector<Set> sets_;
  std::vector<Instruction> program_;
  uint32_t places_ = 2;
};

}  // namespace blip2rt
