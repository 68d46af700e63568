// Generation options as text, keys and values, validated together: the C library's counterpart of blip2rt.options,
// whose names, defaults, limits and messages it has. Knows numbers and strings only.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "search/options.h"

namespace blip2rt {

// Pairs of key and value that end with null; null: none. Throws Error for a key without a value.
std::vector<std::pair<std::string, std::string>> read_pairs(const char* const* pairs);

// Returns a Boolean, or a whole number from `low` to `high`; nothing for any other text.
std::optional<bool> parse_flag(const std::string& text);
std::optional<int64_t> parse_whole(const std::string& text, int64_t low, int64_t high);

// A value as a message shows it: a number as it is, other text in quotes.
std::string shown(const std::string& value);

// A task's defaults, of the manifest.
struct Decoding {
  int64_t num_beams = 1, max_new_tokens = 30, min_new_tokens = 1;
  double length_penalty = 1.0;
};

// How many tokens fit after the prompt, with the words of the error if more are requested.
struct Room {
  int64_t tokens;
  std::string behind;  // what takes up positions, as in "the image (32), the prompt (7), of 1024 tokens in all"
  std::string fix;     // how to make room
};

class TextOptions {
 public:
  TextOptions() = default;

  // `captions`: allow `raw` and `pool`. Throws Error for unknown keys, which also lists the faults of the others.
  TextOptions(const char* const* pairs, bool captions);

  // These options, and those of `defaults` that they leave open.
  TextOptions over(const TextOptions& defaults) const;

  // Returns the loop's options except those that need a tokenizer: stop ids, bad words, prefix, stop strings. Throws
  // Error with every fault.
  GenerationOptions resolve(const Decoding& defaults, const Room& room) const;

  bool raw() const { return text_of("raw") == "true"; }
  std::string pool() const { return text_of("pool"); }  // a file, or "false"; empty: the bundle's own
  std::string forced_prefix() const { return text_of("forced_prefix"); }
  const std::vector<std::string>& bad_words() const { return bad_words_; }
  const std::vector<std::string>& stop_strings() const { return stop_strings_; }

 private:
  using Wrong = std::vector<std::pair<std::string, std::string>>;  // name and fault

  std::string text_of(const std::string& name) const;
  Wrong single_faults() const;
  std::optional<int64_t> whole(const std::string& name) const;
  std::optional<double> number(const std::string& name) const;

  std::map<std::string, std::string> values_;
  std::vector<std::string> bad_words_, stop_strings_;
};

}  // namespace blip2rt
