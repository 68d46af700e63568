// Prompts -> token ids of the language model, and back to text; texts -> token ids of the Q-Former.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/lazy.h"
#include "bundle/bundle.h"
#include "search/repeated_words.h"
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
  // `file`: names the tokenizer in errors. `special_tokens`: whether "<|im_end|>" in a caller's text is that token, or
  // plain text. Throws Error.
  LlmTokenizer(std::string file, std::shared_ptr<const Tokenizer> tokenizer, LlmSpec spec, bool special_tokens);

  // With the special tokens of the model's prompts, or as the continuation of another text. Throw Error.
  Ids encode(const Prompt& prompt) const;
  Ids encode_more(const Prompt& prompt) const { return encode(prompt, false); }

  // Text on one line, or as Hugging Face's tokenizer decodes it, stripped; both without special tokens.
  std::string line(const Ids& ids) const;
  std::string text(const Ids& ids) const;
  std::string decode(const int64_t* ids, size_t count, bool skip_special) const;

  // The part of both that no later token changes, if no special token follows.
  std::string settled_text(const Ids& ids, bool single_line) const;

  // An answer up to the first token that begins or ends a chat turn.
  Ids shown(const Ids& ids) const;
  bool begins_turn(int64_t id) const { return turns_.count(id) != 0; }
  const std::map<int64_t, std::string>& turns() const { return turns_; }

  // The text of every token. Computed by its first call.
  std::shared_ptr<const Vocabulary> vocabulary() const;

  // The rule that a text says no content word twice. Computed by its first call.
  std::shared_ptr<const RepeatedWords> repeated_words() const;
  const LlmSpec& spec() const { return spec_; }

 private:
  Ids encode(const Prompt& prompt, bool layout) const;
  std::vector<TextPiece> plain_pieces(const Prompt& prompt, std::vector<std::string>& held) const;

  std::string file_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  LlmSpec spec_;
  bool special_tokens_;
  std::vector<std::string> special_words_;  // the longest first
  std::map<int64_t, std::string> turns_;    // special tokens that begin or end a turn, except stop tokens
  mutable Lazy<std::shared_ptr<const Vocabulary>> vocabulary_;
  mutable Lazy<std::shared_ptr<const RepeatedWords>> repeated_words_;
};

// Token ids of a text in the tokenizer's template: [CLS] ... [SEP]; a text too long for the model is cut.
class QFormerTokenizer {
 public:
  // As in LlmTokenizer. Throws Error.
  QFormerTokenizer(std::string file, std::shared_ptr<const Tokenizer> tokenizer, QFormerTextSpec spec,
                   bool special_tokens);

  Ids encode(const std::string& text) const;

  // The text in the form that the model was trained on.
  std::string written(const std::string& text) const;

  const QFormerTextSpec& spec() const { return spec_; }

 private:
  std::string file_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  QFormerTextSpec spec_;
  bool special_tokens_;
};

// Opens a tokenizer.json. merges: read them, too, which otherwise waits for the first text. Throws Error.
std::unique_ptr<Tokenizer> open_tokenizer(const std::string& file, bool merges = false);

// Throws Error with all tokenizers that opening them or the first text would reject.
void check_tokenizers(const Bundle& bundle);

// Throws Error unless a text is UTF-8.
void check_text(const std::string& text);

}  // namespace blip2rt
