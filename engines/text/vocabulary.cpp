#include "text/vocabulary.h"

#include <algorithm>

#include "base/utf8.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

constexpr int kMaxProbes = 1000;  // in a table that is at most half full, only crafted keys need more

[[noreturn]] void unknown(const std::string& what) { throw TokenizerError(TokenizerError::kUnknown, what); }

}  // namespace

uint32_t hash_text(std::string_view text) {
  TextHash hash;
  for (const char byte : text) hash.add(byte);
  return hash.value();
}

HashIndex::HashIndex(size_t most) {
  size_t size = 4;
  while (size < 2 * most) size *= 2;
  slots_.assign(size, kNone);
}

void HashIndex::add(uint32_t hash, uint32_t number) {
  size_t slot = hash & (slots_.size() - 1);
  for (int probes = 0; slots_[slot] != kNone; slot = (slot + 1) & (slots_.size() - 1)) {
    if (++probes > kMaxProbes) throw TokenizerError(TokenizerError::kUnsafe, "its tokens collide in a hash table");
  }
  slots_[slot] = number;
}

bool TextTable::add(std::string_view text) {
  const uint32_t hash = hash_text(text);
  if (find(text, hash) != HashIndex::kNone) return false;
  index_.add(hash, static_cast<uint32_t>(size()));
  bytes_ += text;
  ends_.push_back(static_cast<uint32_t>(bytes_.size()));
  return true;
}

ModelVocabulary::ModelVocabulary(Json vocab) : table_(vocab.kind() == Json::kObject ? vocab.size() / 2 : vocab.size()) {
  if (vocab.kind() != Json::kObject && vocab.kind() != Json::kArray) unknown("a model without a vocabulary");
  for (auto at = vocab.begin(); at != vocab.end(); ++at) {
    if (vocab.kind() == Json::kArray) {
      add((*(*at).begin()).text(), static_cast<uint32_t>(size()));
      continue;
    }
    const std::string_view text = (*at).text();
    add(text, (*++at).whole());
  }
}

void ModelVocabulary::add(std::string_view text, uint32_t id) {
  constexpr uint32_t kMaxGap = 1 << 20;
  if (id > 2 * size() + kMaxGap) unknown("the token id " + std::to_string(id) + " far above the others");
  if (!table_.add(text)) unknown("two tokens " + quoted(text));
  if (id >= numbers_.size()) numbers_.resize(std::max<size_t>(id + 1, 0), kNone);
  if (numbers_[id] != kNone) unknown("two tokens of the id " + std::to_string(id));
  numbers_[id] = static_cast<uint32_t>(ids_.size());
  ids_.push_back(id);
  max_bytes_ = std::max(max_bytes_, text.size());
}

}  // namespace blip2rt
