// Tokens by text and by id.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace blip2rt {

// Hashes text byte by byte (FNV-1a), so that all prefixes of a text cost one pass.
class TextHash {
 public:
  void add(char byte) { state_ = (state_ ^ static_cast<uint8_t>(byte)) * 0x100000001B3; }
  uint32_t value() const { return static_cast<uint32_t>((state_ ^ state_ >> 32) * 0x9E3779B97F4A7C15 >> 32); }

 private:
  uint64_t state_ = 0xCBF29CE484222325;
};

uint32_t hash_text(std::string_view text);

// Numbers of keys in an open hash table whose keys are elsewhere. Throws TokenizerError if too many keys collide.
class HashIndex {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  explicit HashIndex(size_t most = 0);

  // Returns the number of the key for which `equals` is true, or kNone.
  template <class Equals>
  uint32_t find(uint32_t hash, const Equals& equals) const {
    if (slots_.empty()) return kNone;
    for (size_t slot = hash & (slots_.size() - 1);; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot] == kNone || equals(slots_[slot])) return slots_[slot];
    }
  }

  // Adds a number whose key is not in the table yet.
  void add(uint32_t hash, uint32_t number);

 private:
  std::vector<uint32_t> slots_;
};

// Texts, numbered in the order in which they were added. add() invalidates the views that operator[] has returned.
class TextTable {
 public:
  explicit TextTable(size_t most = 0) : index_(most) { ends_.reserve(most); }
  size_t size() const { return ends_.size(); }
  std::string_view operator[](size_t number) const {
    const size_t start = number == 0 ? 0 : ends_[number - 1];
    return {bytes_.data() + start, ends_[number] - start};
  }
  uint32_t find(std::string_view text) const { return find(text, hash_text(text)); }
  uint32_t find(std::string_view text, uint32_t hash) const {
    return index_.find(hash, [&](uint32_t number) { return (*this)[number] == text; });
  }
  // Returns whether the text is new.
  bool add(std::string_view text);

 private:
  HashIndex index_;
  std::string bytes_;           // of all texts, one after the other
  std::vector<uint32_t> ends_;  // of each, in bytes_
};

// The tokens of a model. Throws TokenizerError if two of them have the same text or id.
class ModelVocabulary {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  // From {"text": id, ...}, or from [["text", score], ...], where ids are positions.
  explicit ModelVocabulary(Json vocab);

  size_t size() const { return table_.size(); }
  uint32_t id(std::string_view text) const { return id_at(table_.find(text)); }
  uint32_t id(std::string_view text, uint32_t hash) const { return id_at(table_.find(text, hash)); }
  // Returns whether there is such a token, and its text.
  bool has(uint64_t id) const { return id < numbers_.size() && numbers_[id] != kNone; }
  std::string_view text(uint64_t id) const { return table_[numbers_[id]]; }
  size_t max_bytes() const { return max_bytes_; }

 private:
  uint32_t id_at(uint32_t number) const { return number == kNone ? kNone : ids_[number]; }
  void add(std::string_view text, uint32_t id);

  TextTable table_;
  std::vector<uint32_t> ids_, numbers_;  // by number, by id
  size_t max_bytes_ = 0;
};

}  // namespace blip2rt
