#include "text/tokenizer.h"

#include <algorithm>
#include <optional>
#include <string>

#include "base/json.h"
#include "base/utf8.h"
#include "text/added_tokens.h"
#include "text/models.h"
#include "text/parts.h"

namespace blip2rt {
namespace {

void require_bounded(const char* part, double growth) {
  if (growth <= kMaxGrowth) return;
  std::string factor = std::to_string(static_cast<uint64_t>(std::min(growth, 1e18)));
  for (size_t i = factor.size(); i > 3; i -= 3) factor.insert(i - 3, ",");
  throw TokenizerError(TokenizerError::kUnsafe, "its " + std::string(part) + " turns one character into up to " +
                                                    factor + ", more than " +
                                                    std::to_string(static_cast<int>(kMaxGrowth)));
}

}  // namespace

struct Tokenizer::Parts {
  explicit Parts(std::string json) {
    const JsonDocument document(json, "merges");
    const Json root = document.root();
    if (root["version"] && root["version"].text() != "1.0")
      unknown_part("the version " + quoted(root["version"].text()));
    normalizer = normalizer_from(root["normalizer"]);
    require_bounded("normalizer", normalizer.growth);
    pre_tokenizer = pre_tokenizer_from(root["pre_tokenizer"]);
    decoder = decoder_from(root["decoder"]);
    require_bounded("decoder", decoder.growth);
    layout = layout_from(root["post_processor"]);
    model = model_from(root["model"]);
    added = std::make_unique<const AddedTokens>(root["added_tokens"], model->vocabulary(), normalizer);
  }

  // Returns the text of a token, or nothing.
  std::optional<std::string_view> text_of(int64_t id) const {
    if (const AddedToken* token = added->find(id)) return added->shown(*token);
    if (id >= 0 && model->vocabulary().has(static_cast<uint64_t>(id))) {
      return model->vocabulary().text(static_cast<uint64_t>(id));
    }
    return std::nullopt;
  }

  bool is_special(int64_t id) const {
    const AddedToken* token = added->find(id);
    return token != nullptr && token->special;
  }

  // Appends the ids of a text, without the layout.
  void encode(TextPiece piece, Ids& ids) const {
    if (!is_utf8(piece.text)) throw TokenizerError(TokenizerError::kText, "the text is not valid UTF-8");
    Pieces pieces = added->split(piece.text, normalizer, piece.plain);
    pre_tokenizer(pieces);
    for (const Piece& each : pieces) {
      if (each.token >= 0) {
        ids.push_back(each.token);
      } else {
        model->encode(each.text, ids);
      }
    }
  }

  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Decoder decoder;
  Layout layout;
  std::unique_ptr<const TokenModel> model;
  std::unique_ptr<const AddedTokens> added;
};

Tokenizer::Tokenizer(std::string json) try : parts_(std::make_unique<const Parts>(std::move(json))) {
} catch (const TokenizerError&) {
  throw;
} catch (const std::runtime_error& error) {
  throw TokenizerError(TokenizerError::kInvalid, error.what());
}

Tokenizer::~Tokenizer() = default;

Tokenizer::Ids Tokenizer::encode(TextPiece piece, bool layout, size_t max_tokens) const {
  return encode(std::vector<TextPiece>{piece}, layout, max_tokens);
}

void Tokenizer::read_merges() const { parts_->model->read_rest(); }

Tokenizer::Ids Tokenizer::encode(const std::vector<TextPiece>& pieces, bool layout, size_t max_tokens) const {
  static const Layout kBare;
  const Layout& around = layout ? parts_->layout : kBare;
  Ids ids;
  if (parts_->layout.has_text) {
    for (const TextPiece& piece : pieces) parts_->encode(piece, ids);
  }
  const size_t added = around.before.size() + around.after.size();
  ids.resize(std::min(ids.size(), max_tokens - std::min(added, max_tokens)));
  ids.insert(ids.begin(), around.before.begin(), around.before.end());
  ids.insert(ids.end(), around.after.begin(), around.after.end());
  return ids;
}

std::string Tokenizer::decode(const int64_t* ids, size_t count, bool skip_special) const {
  std::vector<std::string> tokens;
  tokens.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const AddedToken* added = parts_->added->find(ids[i]);
    if (added != nullptr && skip_special && parts_->added->is_skipped(*added)) continue;
    const auto text = parts_->text_of(ids[i]);
    if (text) tokens.emplace_back(*text);
  }
  parts_->decoder.run(tokens);
  std::string text;
  for (const std::string& token : tokens) text += token;
  return text;
}

void Tokenizer::each_token(size_t size, const std::function<void(std::string_view)>& take) const {
  Ids before;  // so that a token is one within a text
  size_t start = 0;
  const auto within_text = [&](int64_t id) {
    for (const char* text : {"a", "0", "the"}) {
      if (before.empty()) before = encode(TextPiece{text}, false);
    }
    if (start == 0) start = decode(before, false).size();
    before.push_back(id);
    std::string whole = decode(before, false);
    before.pop_back();
    return whole.erase(0, start);
  };
  std::string bytes;
  for (size_t i = 0; i < size; ++i) {
    const auto id = static_cast<int64_t>(i);
    const auto text = parts_->text_of(id);
    bytes.clear();
    if (!text || parts_->is_special(id)) {
      bytes = text.value_or("");
    } else if (!parts_->decoder.byte_level || !append_bytes(*text, bytes)) {
      const int byte = byte_token(*text);
      bytes = parts_->decoder.byte_fallback && byte >= 0 ? std::string(1, static_cast<char>(byte)) : within_text(id);
    }
    take(bytes);
  }
}

std::vector<AddedToken> Tokenizer::added_tokens() const { return parts_->added->all(); }

size_t Tokenizer::settled(const int64_t* ids, size_t count) const {
  const auto is_open = [this](int64_t id) {
    const auto text = parts_->text_of(id);  // a run of bytes goes on past an id without a token
    return parts_->is_special(id) || !text || byte_token(*text) >= 0;
  };
  while (parts_->decoder.byte_fallback && count > 0 && is_open(ids[count - 1])) --count;
  return count;
}

}  // namespace blip2rt
