#include "text/added_tokens.h"

#include <algorithm>
#include <functional>

#include "base/unicode.h"
#include "base/utf8.h"

namespace blip2rt {
namespace {

bool is_blank(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    if (!properties_of(next_character(text, at)).space()) return false;
  }
  return true;
}

}  // namespace

AddedTokens::AddedTokens(Json list, const ModelVocabulary& model, const Normalizer& normalizer) {
  if (list) {
    for_each_item(list, [&](Json each) {
      const std::string_view content = each["content"].text();
      if (content.empty()) return;
      all_.push_back({each["id"].whole(), std::string(content), each["special"].flag(), each["normalized"].flag(),
                      each["single_word"].flag(), each["lstrip"].flag(), each["rstrip"].flag()});
    });
  }
  // The library gives a new token the next free id, whatever the file says.
  int64_t next = static_cast<int64_t>(model.size());
  for (const AddedToken& token : all_) {
    const uint32_t id = model.id(token.content);
    const int64_t expected = id == ModelVocabulary::kNone ? next++ : id;
    if (token.id != expected) unknown_part("the added token " + quoted(token.content) + " of a foreign id");
  }
  std::sort(all_.begin(), all_.end(), [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  for (const AddedToken& token : all_) {
    Piece piece{token.content};
    if (token.normalized) normalizer.run(piece);
    shown_.push_back(std::move(piece.text));
  }
  TextTable special(all_.size());
  for (const AddedToken& token : all_) {
    if (token.special) special.add(token.content);
  }
  for (const std::string& text : shown_) skipped_.push_back(special.find(text) != HashIndex::kNone);
  add(plain_, false);
  add(normalized_, true);
}

void AddedTokens::add(Set& set, bool normalized) {
  set.texts = TextTable(all_.size());
  for (size_t i = 0; i < all_.size(); ++i) {
    if (all_[i].normalized != normalized) continue;
    const std::string& text = shown_[i];
    if (text.empty() || !set.texts.add(text)) unknown_part("two added tokens " + quoted(text));
    // In a run of spaces, each match of such a token would read the rest of the run.
    if ((all_[i].lstrip || all_[i].rstrip) && is_blank(text)) unknown_part("a blank added token that strips spaces");
    set.tokens.push_back(static_cast<uint32_t>(i));
    set.starts[static_cast<uint8_t>(text[0])] = true;
    set.lengths.push_back(text.size());
  }
  std::sort(set.lengths.begin(), set.lengths.end(), std::greater<>());
  set.lengths.erase(std::unique(set.lengths.begin(), set.lengths.end()), set.lengths.end());
  if (set.lengths.size() > 1000) unknown_part("added tokens of more than 1,000 lengths");
}

const AddedToken* AddedTokens::find(int64_t id) const {
  if (all_.empty() || id > all_.back().id) return nullptr;
  const auto found = std::lower_bound(all_.begin(), all_.end(), id,
                                      [](const AddedToken& token, int64_t wanted) { return token.id < wanted; });
  return found != all_.end() && found->id == id ? &*found : nullptr;
}

Pieces AddedTokens::split_by(const Set& set, const Piece& piece, bool plain) const {
  const std::string_view text = piece.text;
  Pieces pieces;
  size_t done = 0;
  const auto add_text = [&](size_t end) {
    if (done < end) pieces.push_back({std::string(text.substr(done, end - done)), piece.at_start && done == 0, -1});
  };
  const auto character_at = [&](size_t at) { return properties_of(next_character(text, at)); };
  for (size_t at = 0, next; at < text.size(); at = next) {
    next = at + 1;
    if (!set.starts[static_cast<uint8_t>(text[at])]) continue;
    uint32_t found = HashIndex::kNone;
    for (size_t i = 0; i < set.lengths.size() && found == HashIndex::kNone; ++i) {
      if (set.lengths[i] > text.size() - at) continue;
      found = set.texts.find(text.substr(at, set.lengths[i]));
      next = at + set.lengths[i];
    }
    if (found == HashIndex::kNone) {
      next = at + 1;
      continue;
    }
    const AddedToken& token = all_[set.tokens[found]];
    if (plain && token.special) continue;
    size_t begin = at, end = next;  // the library looks for the next token at `next`, even if `end` is beyond it
    if (token.single_word && ((begin > 0 && character_at(previous_start(text, begin)).word()) ||
                              (end < text.size() && character_at(end).word()))) {
      continue;
    }
    while (token.lstrip && begin > done && character_at(previous_start(text, begin)).space()) {
      begin = previous_start(text, begin);
    }
    while (token.rstrip && end < text.size() && character_at(end).space()) next_character(text, end);
    add_text(begin);
    pieces.push_back({{}, false, token.id});
    done = end;
  }
  add_text(text.size());
  return pieces;
}

Pieces AddedTokens::split(std::string_view text, const Normalizer& normalizer, bool plain) const {
  Pieces result;
  for (Piece& piece : split_by(plain_, Piece{std::string(text)}, plain)) {
    if (piece.token >= 0) {
      result.push_back(std::move(piece));
      continue;
    }
    normalizer.run(piece);
    for (Piece& part : split_by(normalized_, piece, plain)) result.push_back(std::move(part));
  }
  return result;
}

}  // namespace blip2rt
