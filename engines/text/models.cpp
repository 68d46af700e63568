#include "text/models.h"

#include <algorithm>
#include <string>

#include "base/unicode.h"
#include "base/utf8.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

// The longest known prefix of a word, then of the rest (Schuster and Nakajima, 2012).
class WordPiece : public TokenModel {
 public:
  explicit WordPiece(Json model)
      : TokenModel(model["vocab"]),
        unknown_(vocabulary_.id(model["unk_token"].text())),
        prefix_(model["continuing_subword_prefix"].text()),
        max_characters_(model["max_input_chars_per_word"].whole()) {}

  void encode(std::string_view word, std::vector<int64_t>& ids) const override {
    const size_t before = ids.size();
    if (count_characters(word) > max_characters_) return add_unknown(ids);
    std::string text;
    for (size_t start = 0, end; start < word.size(); start = end) {
      uint32_t found = ModelVocabulary::kNone;
      const std::string_view head = start > 0 ? std::string_view(prefix_) : std::string_view();
      text.assign(head).append(word.substr(start));
      for (end = word.size(); start < end; end = previous_start(word, end)) {
        text.resize(head.size() + end - start);
        if (text.size() <= vocabulary_.max_bytes()) found = vocabulary_.id(text);
        if (found != ModelVocabulary::kNone) break;
      }
      if (found == ModelVocabulary::kNone) {
        ids.resize(before);
        return add_unknown(ids);
      }
      ids.push_back(found);
    }
  }

 private:
  void add_unknown(std::vector<int64_t>& ids) const {
    if (unknown_ == ModelVocabulary::kNone) throw TokenizerError(TokenizerError::kText, "there is no unknown token");
    ids.push_back(unknown_);
  }

  const uint32_t unknown_;
  const std::string prefix_;
  const size_t max_characters_;
};

class WordLevel : public TokenModel {
 public:
  explicit WordLevel(Json model) : TokenModel(model["vocab"]), unknown_(vocabulary_.id(model["unk_token"].text())) {}

  void encode(std::string_view word, std::vector<int64_t>& ids) const override {
    const uint32_t found = vocabulary_.id(word);
    const uint32_t id = found == ModelVocabulary::kNone ? unknown_ : found;
    if (id == ModelVocabulary::kNone) throw TokenizerError(TokenizerError::kText, "there is no unknown token");
    ids.push_back(id);
  }

 private:
  const uint32_t unknown_;
};

}  // namespace

std::vector<int64_t> TokenModel::byte_tokens(std::string_view bytes) const {
  constexpr char kDigits[] = "0123456789ABCDEF";
  std::vector<int64_t> ids;
  for (const char each : bytes) {
    const auto byte = static_cast<uint8_t>(each);
    const char name[] = {'<', '0', 'x', kDigits[byte >> 4], kDigits[byte & 15], '>'};
    const uint32_t id = vocabulary_.id({name, sizeof(name)});
    if (id == ModelVocabulary::kNone) return {};
    ids.push_back(id);
  }
  return ids;
}

std::unique_ptr<const TokenModel> model_from(Json model) {
  const std::string_view type = model["type"].text();
  if (type == "BPE") return bpe_from(model);
  if (type == "Unigram") return unigram_from(model);
  if (type == "WordPiece") return std::make_unique<WordPiece>(model);
  if (type == "WordLevel") return std::make_unique<WordLevel>(model);
  throw TokenizerError(TokenizerError::kUnknown, "the model " + quoted(type));
}

}  // namespace blip2rt
