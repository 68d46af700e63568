// What tokenizers share with their callers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>

namespace blip2rt {

// A fault of a tokenizer.json: "what is wrong", without the file's name.
class TokenizerError : public std::runtime_error {
 public:
  enum Kind {
    kInvalid,  // not a tokenizer.json
    kUnsafe,   // a part could blow up a short text
    kUnknown,  // valid, but a part is not implemented here; the message names it
    kText,     // a text cannot be encoded: invalid UTF-8, or no token for a character
  };
  TokenizerError(Kind kind, const std::string& what) : std::runtime_error(what), kind(kind) {}
  Kind kind;
};

// A token that is found in a text before the model sees the rest of it.
struct AddedToken {
  int64_t id;
  std::string content;
  bool special, normalized, single_word, lstrip, rstrip;
};

// A text, and whether special tokens in it are read as plain text (of an untrusted caller).
struct TextPiece {
  std::string_view text;
  bool plain = false;
};

}  // namespace blip2rt
