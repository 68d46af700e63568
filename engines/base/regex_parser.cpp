// Compiles regular expressions.
#include <string>
#include <utility>

#include "base/regex.h"
#include "base/unicode.h"
#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxProgram = 10000;
constexpr int kMaxDepth = 50;

uint32_t category_bit(int category) { return 1u << category; }

// The categories of a name such as "Lu" or "L"; 0 if the name is unknown.
uint32_t categories_of(std::string_view name) {
  constexpr std::string_view kNames = "CnLuLlLtLmLoMnMcMeNdNlNoPcPdPsPePiPfPoSmScSkSoZsZlZpCcCfCoCs";
  uint32_t found = 0;
  for (size_t i = 0; i < kNames.size(); i += 2) {
    if (name.size() == 1 ? kNames[i] == name[0] : kNames.substr(i, 2) == name) found |= category_bit(int(i / 2));
  }
  return found;
}

bool is_letter(uint32_t c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }
bool is_digit(uint32_t c) { return c >= '0' && c <= '9'; }

}  // namespace

// Compiles a pattern while it reads it. Each function appends what it reads to the program.
class RegexParser {
 public:
  RegexParser(std::string_view pattern, Regex& regex) : pattern_(pattern), regex_(regex) {}

  void parse() {
    alternatives(0);
    if (at_ != pattern_.size()) unknown();
    add(Regex::kEnd);
  }

 private:
  using Item = Regex::Item;
  using Set = Regex::Set;

  [[noreturn]] void unknown() const { throw RegexError("the regular expression " + quoted(pattern_)); }

  std::vector<Regex::Instruction>& program() { return regex_.program_; }
  uint32_t here() { return static_cast<uint32_t>(program().size()); }

  uint32_t add(Regex::Op op, uint32_t first = 0, uint32_t second = 0) {
    if (program().size() >= kMaxProgram) unknown();
    program().push_back({op, first, second});
    return here() - 1;
  }

  bool next_is(std::string_view text) const { return pattern_.substr(at_, text.size()) == text; }

  bool take(std::string_view text) {
    if (!next_is(text)) return false;
    at_ += text.size();
    return true;
  }

  // Moves the instructions from `start` on back by one and puts a split or look in front of them.
  void insert(uint32_t start, Regex::Op op) {
    add(op);
    for (uint32_t i = here() - 1; i > start; --i) {
      program()[i] = program()[i - 1];
      if (program()[i].op == Regex::kSet || program()[i].op > Regex::kAtomic) continue;
      if (program()[i].first >= start) ++program()[i].first;
      if (program()[i].second >= start) ++program()[i].second;
    }
    program()[start] = {op, start + 1, here()};
  }

  void alternatives(int depth) {
    if (depth > kMaxDepth) unknown();
    std::vector<uint32_t> jumps;
    for (uint32_t start = here();; start = here()) {
      sequence(depth);
      if (!take("|")) break;
      insert(start, Regex::kSplit);
      jumps.push_back(add(Regex::kJump));
      program()[start].second = here();
    }
    for (const uint32_t jump : jumps) program()[jump].second = here();
  }

  void sequence(int depth) {
    while (at_ < pattern_.size() && !next_is("|") && !next_is(")")) {
      const uint32_t start = here();
      atom(depth);
      repeat(start);
    }
  }

  void atom(int depth) {
    if (take("(?:")) return group(depth);
    if (take("(?i:")) {
      const bool outer = std::exchange(ignores_case_, true);
      group(depth);
      ignores_case_ = outer;
      return;
    }
    for (const auto& [opening, op] :
         {std::pair("(?=", Regex::kLook), {"(?!", Regex::kNoLook}, {"(?>", Regex::kAtomic}}) {
      if (!take(opening)) continue;
      const uint32_t start = here();
      group(depth);
      return enclose(start, op);
    }
    if (next_is("(?") || next_is("(*")) unknown();
    if (take("(")) {
      const uint32_t place = std::exchange(regex_.places_, regex_.places_ + 2);
      add(Regex::kPlace, place);
      group(depth);
      return static_cast<void>(add(Regex::kPlace, place + 1));
    }
    if (take("^")) return static_cast<void>(add(Regex::kLineStart));
    if (take("$")) return static_cast<void>(add(Regex::kLineEnd));
    if (take("\\b")) return static_cast<void>(add(Regex::kWordEdge));
    Set set;
    if (take(".")) {
      set = {{Item{'\n', '\n'}}, true};
    } else if (take("[")) {
      set = bracket();
    } else {
      set.items = {item(false)};
      fold(set);
    }
    regex_.sets_.push_back(std::move(set));
    add(Regex::kSet, static_cast<uint32_t>(regex_.sets_.size() - 1));
  }

  void group(int depth) {
    alternatives(depth + 1);
    if (!take(")")) unknown();
  }

  void enclose(uint32_t start, Regex::Op op) {
    insert(start, op);
    add(Regex::kEnd);
    program()[start].second = here();
  }

  // Reads a quantifier of the instructions from `start` on.
  void repeat(uint32_t start) {
    uint32_t least = 0, most = UINT32_MAX;
    const bool counted = next_is("{");
    if (take("?")) {
      most = 1;
    } else if (take("+")) {
      least = 1;
    } else if (counted) {
      ++at_;
      least = count();
      most = take(",") ? (next_is("}") ? UINT32_MAX : count()) : least;
      if (!take("}") || most < least) unknown();
    } else if (!take("*")) {
      return;
    }
    const bool possessive = !counted && take("+"), lazy = !counted && !possessive && take("?");
    if (next_is("?") || next_is("+") || next_is("*") || next_is("{")) unknown();
    expand(start, least, most, lazy);
    if (possessive) enclose(start, Regex::kAtomic);
  }

  void expand(uint32_t start, uint32_t least, uint32_t most, bool lazy) {
    const std::vector<Regex::Instruction> body(program().begin() + start, program().end());
    program().resize(start);
    const auto copy = [&] {
      const uint32_t shift = here() - start;
      for (Regex::Instruction each : body) {
        if (each.op != Regex::kSet && each.op <= Regex::kAtomic) each.first += shift, each.second += shift;
        add(each.op, each.first, each.second);
      }
    };
    const auto split = [&](uint32_t head) {
      program()[head].first = lazy ? here() : head + 1, program()[head].second = lazy ? head + 1 : here();
    };
    for (uint32_t i = 0; i < least; ++i) copy();
    if (most == UINT32_MAX) {
      const uint32_t head = add(Regex::kSplit);
      copy();
      add(Regex::kJump, 0, head);
      return split(head);
    }
    std::vector<uint32_t> heads;
    for (uint32_t i = least; i < most; ++i) {
      heads.push_back(add(Regex::kSplit));
      copy();
    }
    for (const uint32_t head : heads) split(head);
  }

  uint32_t count() {
    uint32_t number = 0;
    if (!is_digit(peek())) unknown();
    while (is_digit(peek()) && number < 1000) number = number * 10 + peek() - '0', ++at_;
    return number;
  }

  uint32_t peek() const { return at_ < pattern_.size() ? static_cast<uint8_t>(pattern_[at_]) : 0; }

  // Reads a set after its '['.
  Set bracket() {
    Set set;
    set.negated = take("^");
    for (bool first = true; first || !next_is("]"); first = false) {
      if (at_ >= pattern_.size() || next_is("&&") || next_is("[") || (first && next_is("]"))) unknown();
      Item low = item(true);
      if (low.low == low.high && next_is("-") && pattern_.substr(at_, 2) != "-]") {
        ++at_;
        const Item high = item(true);
        if (high.low != high.high || high.low < low.low || ignores_case_) unknown();
        low.high = high.high;
      }
      set.items.push_back(low);
    }
    ++at_;
    fold(set);
    return set;
  }

  // Adds the other cases of a set's letters, if case is ignored.
  void fold(Set& set) const {
    if (!ignores_case_) return;
    for (size_t i = 0, count = set.items.size(); i < count; ++i) {
      const uint32_t letter = set.items[i].low;
      if (set.items[i].high != letter || letter >= 128) unknown();
      if (!is_letter(letter)) continue;
      set.items.push_back({letter ^ 32, letter ^ 32});
      if ((letter | 32) == 's') set.items.push_back({0x17F, 0x17F});
      if ((letter | 32) == 'k') set.items.push_back({0x212A, 0x212A});
    }
  }

  // Reads one character, escape or property.
  Item item(bool in_set) {
    const uint32_t character = next_character(pattern_, at_);
    if (character != '\\') {
      if (!in_set && character < 128 && std::string_view("*+?{").find(char(character)) != std::string_view::npos)
        unknown();
      return {character, character};
    }
    if (at_ >= pattern_.size()) unknown();
    const uint32_t name = next_character(pattern_, at_);
    Item found;
    found.negated = name < 128 && is_letter(name) && (name & 32) == 0;
    switch (is_letter(name) ? name | 32 : name) {
      case 'w': found.word = true; return found;
      case 's': found.space = true; return found;
      case 'd': found.categories = category_bit(Properties::kNd); return found;
      case 'p': {
        const size_t close = pattern_.find('}', at_);
        if (!take("{") || close == std::string_view::npos) unknown();
        if (take("^")) found.negated = !found.negated;
        found.categories = categories_of(pattern_.substr(at_, close - at_));
        if (found.categories == 0) unknown();
        at_ = close + 1;
        return found;
      }
      default: break;
    }
    constexpr std::string_view kNames = "rntfv", kCharacters = "\r\n\t\f\v";
    const size_t which = name < 128 ? kNames.find(static_cast<char>(name)) : std::string_view::npos;
    if (which == std::string_view::npos && (is_letter(name) || is_digit(name))) unknown();
    const uint32_t code = which != std::string_view::npos ? static_cast<uint32_t>(kCharacters[which]) : name;
    return {code, code};
  }

  std::string_view pattern_;
  Regex& regex_;
  size_t at_ = 0;
  bool ignores_case_ = false;
};

Regex::Regex(std::string_view pattern) { RegexParser(pattern, *this).parse(); }

}  // namespace blip2rt
