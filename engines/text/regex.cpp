// Matches regular expressions.
#include "text/regex.h"

#include "base/unicode.h"
#include "text/tokenizer_types.h"

namespace blip2rt {

// Runs a program on a text, depth first.
class RegexMatcher {
 public:
  RegexMatcher(const Regex& regex, std::string_view text) : regex_(regex), text_(text) {}

  // Returns where the match ends that starts at this instruction and place, or npos.
  size_t run(uint32_t instruction, size_t at) {
    std::vector<std::pair<uint32_t, size_t>> open = {{instruction, at}};
    while (!open.empty()) {
      auto [pc, place] = open.back();
      open.pop_back();
      for (bool alive = true; alive;) {
        if (++steps_ > kMaxSteps) throw TokenizerError(TokenizerError::kText, "the text takes too long to split");
        const Regex::Instruction& now = regex_.program_[pc++];
        switch (now.op) {
          case Regex::kSet:
            alive = place < text_.size() && regex_.contains(regex_.sets_[now.first], next_character(text_, place));
            break;
          case Regex::kSplit:
            open.emplace_back(now.second, place);
            pc = now.first;
            break;
          case Regex::kJump: pc = now.second; break;
          case Regex::kLook:
          case Regex::kNoLook:
            alive = (run(pc, place) != npos) == (now.op == Regex::kLook);
            pc = now.second;
            break;
          case Regex::kAtomic:
            place = run(pc, place);
            alive = place != npos;
            pc = now.second;
            break;
          case Regex::kLineStart: alive = place == 0 || text_[place - 1] == '\n'; break;
          case Regex::kLineEnd: alive = place == text_.size() || text_[place] == '\n'; break;
          case Regex::kEnd: return place;
        }
      }
    }
    return npos;
  }

  static constexpr size_t npos = std::string_view::npos;

 private:
  static constexpr size_t kMaxSteps = 50'000'000;

  const Regex& regex_;
  std::string_view text_;
  size_t steps_ = 0;
};

bool Regex::contains(const Set& set, uint32_t character) const {
  for (const Item& item : set.items) {
    const Properties properties = properties_of(character);
    const bool found = item.word    ? properties.regex_word()
                       : item.space ? properties.regex_space()
                                    : character >= item.low && character <= item.high &&
                                          (item.categories >> properties.category() & 1) != 0;
    if (found != item.negated) return !set.negated;
  }
  return set.negated;
}

std::pair<size_t, size_t> Regex::find(std::string_view text, size_t from) const {
  RegexMatcher matcher(*this, text);
  for (size_t at = from; at <= text.size();) {
    const size_t end = matcher.run(0, at);
    if (end != RegexMatcher::npos) return {at, end};
    if (at == text.size()) break;
    next_character(text, at);
  }
  return {RegexMatcher::npos, RegexMatcher::npos};
}

}  // namespace blip2rt
