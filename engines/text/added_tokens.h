// Tokens that are found in a text before the model sees the rest of it.
#pragma once

#include <string>
#include <vector>

#include "text/models.h"
#include "text/parts.h"
#include "text/tokenizer_types.h"
#include "text/vocabulary.h"

namespace blip2rt {

class AddedTokens {
 public:
  // From the list in a tokenizer.json.
  AddedTokens(Json list, const ModelVocabulary& model, const Normalizer& normalizer);

  // Splits a text at the tokens and normalizes the rest. `plain`: special tokens are text.
  Pieces split(std::string_view text, const Normalizer& normalizer, bool plain) const;

  const std::vector<AddedToken>& all() const { return all_; }
  // Returns the token of an id, or null.
  const AddedToken* find(int64_t id) const;
  // Returns the token's text for a decoder: normalized, if it is found in normalized texts.
  const std::string& shown(const AddedToken& token) const { return shown_[static_cast<size_t>(&token - all_.data())]; }
  // Returns whether a decoder that skips special tokens skips this one.
  bool is_skipped(const AddedToken& token) const { return skipped_[static_cast<size_t>(&token - all_.data())]; }

 private:
  // Tokens that are looked for in texts as they are, or in normalized ones.
  struct Set {
    TextTable texts;
    std::vector<uint32_t> tokens;  // by number of the text
    std::vector<size_t> lengths;   // of the texts, in bytes, the longest first
    bool starts[256] = {};         // by first byte
  };

  void add(Set& set, bool normalized);
  std::vector<Pieces::value_type> split_by(const Set& set, const Piece& piece, bool plain) const;

  std::vector<AddedToken> all_;  // by id
  std::vector<std::string> shown_;
  std::vector<bool> skipped_;
  Set plain_, normalized_;
};

}  // namespace blip2rt
