// Prompts -> token ids of the language model, and back to text; texts -> token ids of the Q-Former. The C library's
// counterpart of blip2rt.text.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "model/bundle.h"
#include "search/vocabulary.h"
#include "text/tokenizer.h"

namespace blip2rt {

using Ids = std::vector<int64_t>;

// The language model's input: a caller's text, and the bundle's template before and after it.
struct Prompt {
  std::string before, text, after;
  std::string whole() const { return before + text + after; }
};

class LlmTokenizer {
 public:
  // `special_tokens`: whether "<|im_end|>" in a caller's text is that token, or plain text. Throws Error.
  LlmTokenizer(const Bundle& bundle, bool special_tokens);

  // With the special tokens of the model's prompts, or as the continuation of another text. Throw Error.
  Ids encode(const Prompt& prompt) const;
  Ids encode_more(const Prompt& prompt) const { return encode(prompt, false); }

  // Text on one line, or as Hugging Face's tokenizer decodes it, stripped; both without special tokens.
  std::string line(const Ids& ids) const { return tidied(ids); }
  std::string text(const Ids& ids) const;
  std::string decode(const int64_t* ids, size_t count, bool skip_special) const;

  // An answer up to the first token that begins or ends a chat turn.
  Ids shown(const Ids& ids) const;
  bool begins_turn(int64_t id) const { return turns_.count(id) != 0; }
  const std::map<int64_t, std::string>& turns() const { return turns_; }

  size_t settled(const Ids& ids) const { return tokenizer_.settled(ids.data(), ids.size()); }
  bool cleans() const { return spec_.clean_up_tokenization_spaces; }
  std::shared_ptr<const Vocabulary> vocabulary() const;

 private:
  Ids encode(const Prompt& prompt, bool layout) const;
  std::vector<TextPiece> plain_pieces(const Prompt& prompt, std::vector<std::string>& held) const;
  std::string tidied(const Ids& ids) const;

  const LlmSpec& spec_;
  std::string file_;
  Tokenizer tokenizer_;
  bool special_tokens_;
  std::vector<std::string> special_words_;  // the longest first
  std::map<int64_t, std::string> turns_;    // special tokens that begin or end a turn, except stop tokens
};

// Token ids of a text in the tokenizer's template: [CLS] ... [SEP]; a text too long for the model is cut.
class QFormerTokenizer {
 public:
  QFormerTokenizer(const Bundle& bundle, const QFormerTextSpec& spec, bool special_tokens);

  Ids encode(const std::string& text) const;

  // The text in the form that the model was trained on.
  std::string written(const std::string& text) const;

 private:
  const QFormerTextSpec& spec_;
  std::string file_;
  Tokenizer tokenizer_;
  bool special_tokens_;
};

// Throws Error unless a text is UTF-8.
void check_text(const std::string& text);

// Tokens of one text, one by one -> pieces of the text. Joined, they are LlmTokenizer::text of all shown tokens. A
// piece never ends within a character, nor where later tokens may still change it.
class TextStream {
 public:
  // `given`: tokens at the beginning of the text.
  TextStream(const LlmTokenizer& tokenizer, Ids given) : tokenizer_(tokenizer), ids_(std::move(given)) {}

  // Adds a token. Returns the new part of the text that is final; it may be empty.
  std::string push(int64_t id);

  // Returns the rest.
  std::string end() { return emit(tokenizer_.text(ids_)); }

 private:
  std::string emit(const std::string& text);

  const LlmTokenizer& tokenizer_;
  Ids ids_;
  size_t emitted_ = 0;  // bytes
  bool ended_ = false;  // by a token that begins or ends a turn
};

}  // namespace blip2rt
