// Text -> token ids and back, as Hugging Face's library `tokenizers` does it, from a tokenizer.json.
// Knows byte-level BPE, BPE with byte fallback, WordPiece, WordLevel and Unigram, with the normalizers, pre-tokenizers,
// post-processors and decoders of the models that we export. Files are untrusted.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer_types.h"

namespace blip2rt {

// Any thread may call its functions. Token ids are int64_t, as in the loop.
class Tokenizer {
 public:
  using Ids = std::vector<int64_t>;

  // Opens the bytes of a tokenizer.json. Its padding and truncation are ignored. Throws TokenizerError. The merges of a
  // BPE model, two thirds of the work, are read when the first text is encoded, which throws if they are wrong.
  explicit Tokenizer(std::string json);
  ~Tokenizer();

  // Reads the merges now. Throws TokenizerError.
  void read_merges() const;

  // Encodes UTF-8 text. `layout`: add the post-processor's special tokens, such as [CLS] ... [SEP]. At most
  // `max_tokens` are returned, the layout's included; the text is cut on the right. Throws TokenizerError.
  Ids encode(TextPiece piece, bool layout, size_t max_tokens = SIZE_MAX) const;

  // Encodes consecutive pieces, each on its own, and lays out the whole.
  Ids encode(const std::vector<TextPiece>& pieces, bool layout, size_t max_tokens = SIZE_MAX) const;

  // Decodes ids to UTF-8 text; unknown ids add nothing. Incomplete characters become U+FFFD.
  std::string decode(const int64_t* ids, size_t count, bool skip_special) const;
  std::string decode(const Ids& ids, bool skip_special) const { return decode(ids.data(), ids.size(), skip_special); }

  // Calls `take` with the bytes that each of the tokens 0 to size - 1 adds to a text: a token may hold half a
  // character. A special token has the bytes of its name, an unknown id none.
  void each_token(size_t size, const std::function<void(std::string_view)>& take) const;

  std::vector<AddedToken> added_tokens() const;

  // The length of the longest prefix of `ids` whose text later tokens cannot change: a trailing run of byte tokens is
  // decoded as a whole.
  size_t settled(const int64_t* ids, size_t count) const;

 private:
  struct Parts;
  std::unique_ptr<const Parts> parts_;
};

}  // namespace blip2rt
