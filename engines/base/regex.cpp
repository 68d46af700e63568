// Matches regular expressions.
#include "base/regex.h"

#include "base/unicode.h"

namespace blip2rt {

// Runs a program on a text, depth first.
class RegexMatcher {
 public:
  RegexMatcher(const Regex& regex, std::string_view text, Regex::Places& places)
      : regex_(regex), text_(text), places_(places) {}

  // Returns where the match ends that starts at this instruction and place, or npos.
  size_t run(uint32_t instruction, size_t at, bool whole = false) {
    std::vector<std::pair<uint32_t, size_t>> open = {{instruction, at}};
    while (!open.empty()) {
      auto [pc, place] = open.back();
      open.pop_back();
      if ((pc & kRestored) != 0) {
        places_[pc & ~kRestored] = place;
        continue;
      }
      for (bool alive = true; alive;) {
        if (++steps_ > kMaxSteps || open.size() > kMaxOpen) throw RegexError("a text takes too long to match");
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
          case Regex::kWordEdge: alive = is_word_before(place) != (place < text_.size() && is_word(place)); break;
          case Regex::kPlace:
            open.emplace_back(kRestored | now.first, places_[now.first]);
            places_[now.first] = place;
            break;
          case Regex::kEnd:
            if (!whole || place == text_.size()) return place;
            alive = false;
        }
      }
    }
    return npos;
  }

  static constexpr size_t npos = std::string_view::npos;

 private:
  static constexpr size_t kMaxSteps = 50'000'000, kMaxOpen = 5'000'000;  // the latter take 80 MB
  static constexpr uint32_t kRestored = 1u << 31;  // not an instruction: the index of a place, which was there before

  bool is_word(size_t at) const { return properties_of(next_character(text_, at)).regex_word(); }
  bool is_word_before(size_t at) const { return at > 0 && is_word(previous_start(text_, at)); }

  const Regex& regex_;
  std::string_view text_;
  Regex::Places& places_;
  size_t steps_ = 0;
};

namespace {

std::string group_of(std::string_view text, const Regex::Places& places, size_t begin) {
  const bool takes_part = places[begin] != RegexMatcher::npos && places[begin + 1] != RegexMatcher::npos;
  return takes_part ? std::string(text.substr(places[begin], places[begin + 1] - places[begin])) : "";
}

}  // namespace

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

bool Regex::find(std::string_view text, size_t from, Places& places) const {
  places.assign(places_, RegexMatcher::npos);
  RegexMatcher matcher(*this, text, places);
  for (size_t at = from;; next_character(text, at)) {
    places[0] = at;
    places[1] = matcher.run(0, at);
    if (places[1] != RegexMatcher::npos) return true;
    if (at >= text.size()) return false;
  }
}

bool Regex::is_in(std::string_view text) const {
  Places places;
  return find(text, 0, places);
}

std::optional<std::vector<std::string>> Regex::match(std::string_view text) const {
  Places places(places_, RegexMatcher::npos);
  if (RegexMatcher(*this, text, places).run(0, 0, true) == RegexMatcher::npos) return std::nullopt;
  std::vector<std::string> groups = {std::string(text)};
  for (size_t i = 2; i < places.size(); i += 2) groups.push_back(group_of(text, places, i));
  return groups;
}

std::string Regex::replaced(std::string_view text, std::string_view form) const {
  Places places;
  if (!find(text, 0, places)) return std::string(text);
  std::string made(text.substr(0, places[0]));
  for (size_t i = 0; i < form.size(); ++i) {
    if (form[i] == '$') {
      made += group_of(text, places, 2 * (form[++i] - '0'));
    } else {
      made += form[i];
    }
  }
  return made += text.substr(places[1]);
}

}  // namespace blip2rt
