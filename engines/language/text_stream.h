// A text that comes in pieces: tokens -> pieces, and pieces -> pieces before the first of some stop strings.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "language/tokenizers.h"

namespace blip2rt {

// Tokens of one text, one by one -> pieces of the text. Joined, they are LlmTokenizer::text of all shown tokens or, on
// a single line, LlmTokenizer::line. A piece never ends within a character, nor where later tokens may still change it.
class TextStream {
 public:
  // `given`: tokens at the beginning of the text. The tokenizer must outlive the stream.
  TextStream(const LlmTokenizer& tokenizer, Ids given, bool single_line)
      : tokenizer_(tokenizer), ids_(std::move(given)), single_line_(single_line) {}

  // Adds a token. Returns the new part of the text that is final; it may be empty.
  std::string push(int64_t id);

  // Returns the rest.
  std::string end() { return rest(single_line_ ? tokenizer_.line(ids_) : tokenizer_.text(ids_)); }

  // Returns what the pieces so far lack of the whole text.
  std::string rest(const std::string& text);

  // Whether a token that begins or ends a turn has ended the text.
  bool ended() const { return ended_; }

 private:
  const LlmTokenizer& tokenizer_;
  Ids ids_;
  bool single_line_;
  size_t emitted_ = 0;  // bytes
  bool ended_ = false;
};

// Pieces of a text -> its pieces before the first of some stop strings. Holds back what may begin one.
class StopCut {
 public:
  explicit StopCut(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Adds a piece. Returns the new part of the text that is final; it may be empty.
  std::string push(const std::string& piece);

  // Returns the text, and what its pieces lack of it. `whole`: the uncut text, if it is not that of the pieces.
  std::pair<std::string, std::string> finish(const std::string* whole = nullptr);

  bool stopped() const { return stopped_; }

 private:
  std::string_view cut(size_t end);
  std::string rest(std::string_view text);

  std::vector<std::string> stops_;
  std::string whole_;
  size_t emitted_ = 0;  // bytes
  bool stopped_ = false;
};

}  // namespace blip2rt
