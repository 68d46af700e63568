// Parts of a tokenizer besides its model, each made from its JSON. What is not implemented raises TokenizerError.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace blip2rt {

// A part of the text: of the whole of it at first, of a word at last.
struct Piece {
  std::string text;
  bool at_start = true;  // whether its first character comes from the text's first one
  int64_t token = -1;    // of an added token
};
using Pieces = std::vector<Piece>;

// The longest text that one character may become in a normalizer or decoder.
constexpr double kMaxGrowth = 64;

// Changes a part's text. `growth`: how many characters it makes of one at most.
struct Normalizer {
  std::function<void(Piece&)> run;
  double growth = 1;
};
Normalizer normalizer_from(Json state);

// Splits pieces that are no tokens.
using PreTokenizer = std::function<void(Pieces&)>;
PreTokenizer pre_tokenizer_from(Json state);

// Turns tokens into parts of a text.
struct Decoder {
  std::function<void(std::vector<std::string>&)> run;
  double growth = 1;
  bool byte_level = false, byte_fallback = false;  // whether it, or one of a sequence, is of this type
};
Decoder decoder_from(Json state);

// The ids that surround a text.
struct Layout {
  std::vector<int64_t> before, after;
  bool has_text = true;
};
Layout layout_from(Json state);

// Finds the matches of {"String": ...} or {"Regex": ...} in a text, as consecutive ranges.
struct Range {
  size_t begin, end;
  bool match;
};
using Finder = std::function<std::vector<Range>(std::string_view)>;
Finder finder_from(Json pattern);
Finder finder_of(const std::string& regular_expression);

// Letters that stand for bytes in byte-level tokenizers: printable bytes are themselves, others start at U+0100.
uint32_t letter_of(uint8_t byte);
// Returns -1 if the letter stands for no byte.
int byte_of(uint32_t letter);
// Appends the bytes of a byte-level token. Returns whether all letters stand for one; if not, `to` is unchanged.
bool append_bytes(std::string_view token, std::string& to);
// Returns the byte of a token such as "<0x0A>", or -1.
int byte_token(std::string_view token);

// The value of a flag that may be missing.
bool flag_or(Json value, bool otherwise);
[[noreturn]] void unknown_part(const std::string& what);
// Applies `change` to each item of an array, in turn.
void for_each_item(Json array, const std::function<void(Json)>& change);

}  // namespace blip2rt
