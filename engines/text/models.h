// Models: the ids of a word that a pre-tokenizer made.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "base/json.h"
#include "text/vocabulary.h"

namespace blip2rt {

class TokenModel {
 public:
  explicit TokenModel(Json vocab) : vocabulary_(vocab) {}
  virtual ~TokenModel() = default;

  // Appends the ids of a word of at least one byte. Throws TokenizerError of the kind kText if it has none.
  virtual void encode(std::string_view word, std::vector<int64_t>& ids) const = 0;

  // Reads what the constructor left for the first word. Throws TokenizerError.
  virtual void read_rest() const {}

  const ModelVocabulary& vocabulary() const { return vocabulary_; }

 protected:
  // Returns the ids of the tokens "<0x00>" to "<0xFF>" of the bytes; empty if one is missing.
  std::vector<int64_t> byte_tokens(std::string_view bytes) const;

  const ModelVocabulary vocabulary_;
};

// Throws TokenizerError of the kind kUnknown for other models.
std::unique_ptr<const TokenModel> model_from(Json model);

// One each, for model_from.
std::unique_ptr<const TokenModel> bpe_from(Json model);
std::unique_ptr<const TokenModel> unigram_from(Json model);

}  // namespace blip2rt
