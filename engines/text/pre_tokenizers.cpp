#include <algorithm>

#include "base/regex.h"
#include "base/unicode.h"
#include "base/utf8.h"
#include "text/parts.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

enum class Behavior { kRemoved, kIsolated, kContiguous, kMergedWithPrevious, kMergedWithNext };

Behavior behavior_from(Json value) {
  constexpr std::string_view kNames[] = {"Removed", "Isolated", "Contiguous", "MergedWithPrevious", "MergedWithNext"};
  const auto found = std::find(std::begin(kNames), std::end(kNames), value.text());
  if (found == std::end(kNames)) unknown_part("the behavior " + quoted(value.text()));
  return static_cast<Behavior>(found - std::begin(kNames));
}

// Joins or removes ranges by how delimiters are treated.
std::vector<Range> arranged(std::vector<Range> ranges, Behavior behavior) {
  std::vector<Range> result;
  if (behavior == Behavior::kIsolated) return ranges;
  const bool backward = behavior == Behavior::kMergedWithNext;
  if (backward) std::reverse(ranges.begin(), ranges.end());
  bool before = false;
  for (const Range& range : ranges) {
    const bool joins = behavior == Behavior::kContiguous ? range.match == before : range.match && !before;
    before = range.match;
    if (behavior == Behavior::kRemoved) {
      if (!range.match) result.push_back(range);
    } else if (joins && !result.empty()) {
      result.back().begin = std::min(result.back().begin, range.begin);
      result.back().end = std::max(result.back().end, range.end);
    } else {
      result.push_back(range);
    }
  }
  if (backward) std::reverse(result.begin(), result.end());
  return result;
}

// Replaces each piece that is no token by those that `split` makes of it, without empty ones.
template <class Split>
void split_each(Pieces& pieces, const Split& split) {
  Pieces result;
  result.reserve(pieces.size());
  for (Piece& piece : pieces) {
    if (piece.token >= 0) {
      result.push_back(std::move(piece));
      continue;
    }
    for (const Range& range : split(piece)) {
      if (range.begin == range.end) continue;
      const bool at_start = piece.at_start && range.begin == 0;
      result.push_back({piece.text.substr(range.begin, range.end - range.begin), at_start, -1});
    }
  }
  pieces = std::move(result);
}

PreTokenizer splitter(Finder finder, Behavior behavior) {
  return [=](Pieces& pieces) {
    split_each(pieces, [&](const Piece& piece) { return arranged(finder(piece.text), behavior); });
  };
}

// Finds each character for which a function is true.
template <class Is>
Finder characters(const Is& is) {
  return [is](std::string_view text) {
    std::vector<Range> ranges;
    for (size_t at = 0; at < text.size();) {
      const size_t start = at;
      const bool match = is(next_character(text, at));
      if (!match && !ranges.empty() && !ranges.back().match) {
        ranges.back().end = at;
      } else {
        ranges.push_back({start, at, match});
      }
    }
    return ranges;
  };
}

bool is_punctuation(uint32_t c) { return properties_of(c).punctuation(); }
bool is_space(uint32_t c) { return properties_of(c).space(); }
bool is_numeric(uint32_t c) { return properties_of(c).numeric(); }

// Words, and runs of what is neither word nor space.
PreTokenizer whitespace() {
  return [](Pieces& pieces) {
    const auto kind = [](uint32_t c) { return properties_of(c).word() ? 2 : properties_of(c).space() ? 0 : 1; };
    split_each(pieces, [&](const Piece& piece) {
      std::vector<Range> ranges;
      int before = 0;
      for (size_t at = 0; at < piece.text.size();) {
        const size_t start = at;
        const int now = kind(next_character(piece.text, at));
        if (now != 0 && now == before) ranges.back().end = at;
        if (now != 0 && now != before) ranges.push_back({start, at, true});
        before = now;
      }
      return ranges;
    });
  };
}

PreTokenizer byte_level_from(Json state) {
  const bool prefixes = state["add_prefix_space"].flag(), splits = flag_or(state["use_regex"], true);
  const PreTokenizer split = splitter(
      finder_of(R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)"), Behavior::kIsolated);
  return [=](Pieces& pieces) {
    for (Piece& piece : pieces) {
      if (prefixes && piece.token < 0 && piece.text.front() != ' ') piece.text.insert(0, " ");
    }
    if (splits) split(pieces);
    for (Piece& piece : pieces) {
      if (piece.token >= 0) continue;
      std::string text;
      for (const char byte : piece.text) append_utf8(letter_of(static_cast<uint8_t>(byte)), text);
      piece.text = std::move(text);
    }
  };
}

PreTokenizer metaspace_from(Json state) {
  const std::string mark(state["replacement"].text());
  const Json scheme = state["prepend_scheme"];
  const std::string_view name = scheme ? scheme.text() : "always";
  if (count_characters(mark) != 1 || (name != "always" && name != "first" && name != "never")) {
    unknown_part("a Metaspace with " + quoted(name));
  }
  if (!flag_or(state["add_prefix_space"], true) && name != "never") unknown_part("a Metaspace with two schemes");
  const bool always = name == "always", first = name == "first", splits = flag_or(state["split"], true);
  size_t at = 0;
  const uint32_t character = next_character(mark, at);
  const PreTokenizer split =
      splitter(characters([character](uint32_t c) { return c == character; }), Behavior::kMergedWithNext);
  return [=](Pieces& pieces) {
    for (Piece& piece : pieces) {
      if (piece.token >= 0) continue;
      std::string text;
      for (const char byte : piece.text) byte == ' ' ? text += mark : text += byte;
      const bool marked = text.compare(0, mark.size(), mark) == 0;
      if (!marked && (always || (first && piece.at_start))) text.insert(0, mark);
      piece.text = std::move(text);
    }
    if (splits) split(pieces);
  };
}

PreTokenizer in_turn(std::vector<PreTokenizer> all) {
  return [all = std::move(all)](Pieces& pieces) {
    for (const PreTokenizer& each : all) each(pieces);
  };
}

Finder finder_of_text(const std::string& wanted) {
  if (wanted.empty()) unknown_part("an empty pattern");
  return [wanted](std::string_view text) {
    std::vector<Range> ranges;
    size_t done = 0;
    for (size_t at = text.find(wanted); at != std::string_view::npos; at = text.find(wanted, done)) {
      if (done < at) ranges.push_back({done, at, false});
      done = at + wanted.size();
      ranges.push_back({at, done, true});
    }
    if (done < text.size()) ranges.push_back({done, text.size(), false});
    return ranges;
  };
}

// Runs `make`, and raises its RegexError as this kind of TokenizerError.
template <class Make>
auto made_for(TokenizerError::Kind kind, const Make& make) {
  try {
    return make();
  } catch (const RegexError& error) {
    throw TokenizerError(kind, error.what());
  }
}

}  // namespace

Finder finder_of(const std::string& regular_expression) {
  return
      [regex = made_for(TokenizerError::kUnknown, [&] { return Regex(regular_expression); })](std::string_view text) {
        std::vector<Range> ranges;
        if (text.empty()) return ranges;
        Regex::Places places;
        size_t done = 0, last = std::string_view::npos;  // end of the last match
        for (size_t from = 0; from <= text.size();) {
          if (!made_for(TokenizerError::kText, [&] { return regex.find(text, from, places); })) break;
          const size_t begin = places[0], end = places[1];
          if (begin == end && end == last) {  // an empty match behind another does not count
            if (from >= text.size()) break;
            next_character(text, from);
            continue;
          }
          if (done != begin) ranges.push_back({done, begin, false});
          ranges.push_back({begin, end, true});
          done = from = last = end;
        }
        if (done != text.size()) ranges.push_back({done, text.size(), false});
        return ranges;
      };
}

Finder finder_from(Json pattern) {
  if (pattern["Regex"]) return finder_of(std::string(pattern["Regex"].text()));
  return finder_of_text(std::string(pattern["String"].text()));
}

PreTokenizer pre_tokenizer_from(Json state) {
  if (!state) return [](Pieces&) {};
  const std::string_view type = state["type"].text();
  if (type == "Sequence") {
    std::vector<PreTokenizer> all;
    for_each_item(state["pretokenizers"], [&](Json each) { all.push_back(pre_tokenizer_from(each)); });
    return in_turn(std::move(all));
  }
  if (type == "ByteLevel") return byte_level_from(state);
  if (type == "Metaspace") return metaspace_from(state);
  if (type == "Split") {
    if (state["invert"].flag()) unknown_part("an inverted Split");
    return splitter(finder_from(state["pattern"]), behavior_from(state["behavior"]));
  }
  if (type == "Whitespace") return whitespace();
  if (type == "WhitespaceSplit") return splitter(characters(is_space), Behavior::kRemoved);
  if (type == "BertPreTokenizer") {
    return in_turn({splitter(characters(is_space), Behavior::kRemoved),
                    splitter(characters(is_punctuation), Behavior::kIsolated)});
  }
  if (type == "Punctuation") {
    const Json behavior = state["behavior"];
    return splitter(characters(is_punctuation), behavior ? behavior_from(behavior) : Behavior::kIsolated);
  }
  if (type == "Digits") {
    const bool each = state["individual_digits"].flag();
    return splitter(characters(is_numeric), each ? Behavior::kIsolated : Behavior::kContiguous);
  }
  unknown_part("the pre-tokenizer " + quoted(type));
}

}  // namespace blip2rt
