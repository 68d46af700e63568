// Byte pair encoding (Sennrich et al., arXiv:1508.07909), byte-level or with byte fallback.
#include <queue>
#include <string>
#include <utility>

#include "base/lazy.h"
#include "base/unicode.h"
#include "base/utf8.h"
#include "text/models.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

std::string optional_text(Json value) { return value ? std::string(value.text()) : std::string(); }

class Bpe : public TokenModel {
 public:
  explicit Bpe(Json model)
      : TokenModel(model["vocab"]),
        unknown_(optional_text(model["unk_token"])),
        fuses_unknown_(is_true(model["fuse_unk"])),
        byte_fallback_(is_true(model["byte_fallback"])),
        ignores_merges_(is_true(model["ignore_merges"])),
        unread_(model["merges"].deferred()) {
    if (model["dropout"] && model["dropout"].number() != 0) {
      throw TokenizerError(TokenizerError::kUnknown, "a model with dropout");
    }
    for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      if (!optional_text(model[affix]).empty()) {
        throw TokenizerError(TokenizerError::kUnknown, std::string("a BPE model with ") + affix);
      }
    }
    if (unread_.empty()) throw TokenizerError(TokenizerError::kUnknown, "a BPE model without merges");
  }

  void encode(std::string_view word, std::vector<int64_t>& ids) const override {
    if (ignores_merges_) {
      const uint32_t whole = vocabulary_.id(word);
      if (whole != ModelVocabulary::kNone) {
        ids.push_back(whole);
        return;
      }
    }
    const Merges& merges = read_merges();
    std::vector<Symbol> symbols = symbols_of(word);
    merge(merges, symbols);
    for (const Symbol& symbol : symbols) {
      if (!symbol.removed) ids.push_back(symbol.id);
    }
  }

  void read_rest() const override { read_merges(); }

 private:
  struct Merge {
    uint32_t left, right, both;
  };
  struct Merges {
    // Returns the rank of a pair, or kNone.
    uint32_t rank(uint32_t left, uint32_t right) const {
      return index.find(hash(left, right),
                        [&](uint32_t i) { return ranked[i].left == left && ranked[i].right == right; });
    }

    HashIndex index;
    std::vector<Merge> ranked;
  };
  struct Symbol {
    uint32_t id;
    int before, after;
    bool removed;
  };
  struct Candidate {
    uint32_t rank;
    int at;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : at > other.at; }
  };

  static bool is_true(Json value) { return value && value.flag(); }

  static uint32_t hash(uint32_t left, uint32_t right) {
    return static_cast<uint32_t>((uint64_t{left} << 32 | right) * 0x9E3779B97F4A7C15 >> 32);
  }

  const Merges& read_merges() const {
    return merges_.get([this] {
      std::string json(unread_);
      try {
        Merges merges = merges_from(JsonDocument(json).root());
        std::string().swap(unread_);
        return merges;
      } catch (const TokenizerError&) {
        throw;
      } catch (const std::runtime_error& error) {
        throw TokenizerError(TokenizerError::kInvalid, error.what());
      }
    });
  }

  Merges merges_from(Json merges) const {
    Merges result{HashIndex(merges.size()), {}};
    result.ranked.reserve(merges.size());
    std::string both;
    uint32_t next = 0;  // where vocabularies usually have the token of a merge
    for (const Json merge : merges) {
      std::string_view left, right;
      if (merge.kind() == Json::kString) {  // the older form: "left right"
        const std::string_view text = merge.text();
        const size_t space = text.find(' ');
        if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) unknown(text);
        left = text.substr(0, space);
        right = text.substr(space + 1);
      } else {
        auto at = merge.begin();
        if (!(at != merge.end()) || (*at).kind() != Json::kString) unknown("");
        left = (*at).text();
        if (!(++at != merge.end()) || (*at).kind() != Json::kString) unknown(left);
        right = (*at).text();
      }
      both.assign(left).append(right);
      next = vocabulary_.has(next) && vocabulary_.text(next) == both ? next : id(both);
      const Merge added{id(left), id(right), next++};
      if (result.rank(added.left, added.right) != HashIndex::kNone) unknown(both);  // twice; the second would count
      result.index.add(hash(added.left, added.right), static_cast<uint32_t>(result.ranked.size()));
      result.ranked.push_back(added);
    }
    return result;
  }

  uint32_t id(std::string_view token) const {
    const uint32_t found = vocabulary_.id(token);
    if (found == ModelVocabulary::kNone) unknown(token);
    return found;
  }

  [[noreturn]] static void unknown(std::string_view token) {
    throw TokenizerError(TokenizerError::kUnknown, "a merge with " + quoted(token));
  }

  std::vector<Symbol> symbols_of(std::string_view word) const {
    std::vector<Symbol> symbols;
    symbols.reserve(word.size());
    const auto add = [&](int64_t id) {
      const int at = static_cast<int>(symbols.size());
      symbols.push_back({static_cast<uint32_t>(id), at - 1, at + 1, false});
    };
    bool pending = false;  // an unknown token, which the library adds late
    for (size_t at = 0; at < word.size();) {
      const size_t start = at;
      next_character(word, at);
      const std::string_view part = word.substr(start, at - start);
      const uint32_t found = vocabulary_.id(part);
      if (found != ModelVocabulary::kNone) {
        if (std::exchange(pending, false)) add(unknown_id());
        add(found);
        continue;
      }
      const std::vector<int64_t> bytes = byte_fallback_ ? byte_tokens(part) : std::vector<int64_t>();
      for (const int64_t byte : bytes) add(byte);
      if (!bytes.empty() || unknown_.empty()) continue;
      if (pending && !fuses_unknown_) add(unknown_id());
      unknown_id();
      pending = true;
    }
    if (pending) add(unknown_id());
    if (!symbols.empty()) symbols.back().after = -1;
    return symbols;
  }

  uint32_t unknown_id() const {
    const uint32_t found = vocabulary_.id(unknown_);
    if (found == ModelVocabulary::kNone) {
      throw TokenizerError(TokenizerError::kText,
                           "a character of the text has no token, and there is no unknown token");
    }
    return found;
  }

  // Merges the pair of the lowest rank until none is left.
  static void merge(const Merges& merges, std::vector<Symbol>& symbols) {
    std::priority_queue<Candidate> queue;
    const auto offer = [&](int left) {
      if (left < 0 || symbols[static_cast<size_t>(left)].after < 0) return;
      const Symbol& first = symbols[static_cast<size_t>(left)];
      const uint32_t found = merges.rank(first.id, symbols[static_cast<size_t>(first.after)].id);
      if (found != HashIndex::kNone) queue.push({found, left});
    };
    for (size_t i = 0; i < symbols.size(); ++i) offer(static_cast<int>(i));
    while (!queue.empty()) {
      const Candidate best = queue.top();
      queue.pop();
      Symbol& left = symbols[static_cast<size_t>(best.at)];
      if (left.removed || left.after < 0) continue;
      Symbol& right = symbols[static_cast<size_t>(left.after)];
      const uint32_t now = merges.rank(left.id, right.id), both = merges.ranked[best.rank].both;
      if (now == HashIndex::kNone || merges.ranked[now].both != both) continue;  // one of the two was merged meanwhile
      left.id = both;
      left.after = right.after;
      right.removed = true;
      if (left.after >= 0) symbols[static_cast<size_t>(left.after)].before = best.at;
      offer(left.before);
      offer(best.at);
    }
  }

  const std::string unknown_;
  const bool fuses_unknown_, byte_fallback_, ignores_merges_;
  mutable std::string unread_;  // the merges' JSON, until they are read
  mutable Lazy<Merges> merges_;
};

}  // namespace

std::unique_ptr<const TokenModel> bpe_from(Json model) { return std::make_unique<Bpe>(model); }

}  // namespace blip2rt
