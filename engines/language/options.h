// Generation options of callers, validated together: one table of names, limits and messages for C's strings and
// Python's objects. Knows numbers and strings only.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/parse.h"
#include "bundle/manifest.h"
#include "search/options.h"

namespace blip2rt {

// How many tokens fit after the prompt, with the words of the error if more are requested.
struct Room {
  int64_t tokens;
  std::string behind;  // what takes up positions, as in "the image (32), the prompt (7), of 1024 tokens in all"
  std::string fix;     // how to make room
};

// What a caller gave for an option; nothing, if no option has its type. `shown`: as messages show it.
struct OptionValue {
  std::variant<std::monostate, bool, int64_t, double, std::string, std::vector<std::string>> value;
  std::string shown;
};

// How callers of a language write values: the end of "do_sample is 1: give ...".
struct OptionWording {
  const char *flag, *early_stopping, *text, *texts, *pool;
};

class CallerOptions {
 public:
  using Values = std::map<std::string, OptionValue>;

  CallerOptions() = default;

  // Options of a C caller. `captions`: allow `raw` and `pool`. Throws Error for unknown keys, which also lists the
  // faults of the others.
  CallerOptions(const char* const* pairs, bool captions);

  // Options of a Python caller, and those of `defaults` that they leave open. Throws Error for unknown names in the
  // same way.
  CallerOptions(Values given, std::vector<std::string> unknown, const CallerOptions& defaults, bool captions);

  static std::vector<std::string> names(bool captions);

  // These options, and those of `defaults` that they leave open.
  CallerOptions over(const CallerOptions& defaults) const;

  // Returns the loop's options except those that need a tokenizer: stop ids, bad words, prefix, stop strings. Throws
  // Error with every fault.
  GenerationOptions resolve(const Decoding& defaults, const Room& room) const;

  bool raw() const { return value_or("raw", false); }
  std::string pool() const;  // a file, or "none"; empty: the bundle's own
  // These are empty if they are invalid.
  std::string forced_prefix() const;
  std::vector<std::string> bad_words() const { return texts("bad_words"); }
  std::vector<std::string> stop_strings() const { return texts("stop_strings"); }

 private:
  using Wrong = std::vector<std::pair<std::string, std::string>>;
  struct Sizes;

  Wrong single_faults() const;
  void require_known(const std::vector<std::string>& unknown, bool captions) const;
  Sizes sizes(const Decoding& defaults, const Room& room) const;
  Faults joint_faults(const Sizes& sizes, const Room& room, bool says_sampling) const;
  std::vector<std::string> texts(const char* name) const;

  template <class T>
  const T* find(const std::string& name) const {
    const auto found = values_.find(name);
    return found == values_.end() ? nullptr : std::get_if<T>(&found->second.value);
  }
  template <class T>
  T value_or(const char* name, T otherwise) const {
    const T* value = find<T>(name);
    return value == nullptr ? otherwise : *value;
  }
  double number_or(const char* name, double otherwise) const;

  Values values_;
  const OptionWording* wording_ = nullptr;
};

}  // namespace blip2rt
