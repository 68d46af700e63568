// Validates generation options and reports all faults at once.
#include "search/options.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "base/parse.h"

namespace blip2rt {
namespace {

// Limits far above real use, so that a typo cannot exhaust the memory.
constexpr int kMaxBeams = 1000, kMaxDraws = 10000, kMaxTokens = 1 << 16;

// Returns whether value and 1 / value are positive and finite as floats, the loop's type.
bool positive(double value) {
  const auto narrow = static_cast<float>(value);
  return narrow > 0 && std::isfinite(narrow) && std::isfinite(1.0f / narrow);
}

class Faults {
 public:
  template <class... Parts>
  void require(bool holds, const Parts&... parts) {
    if (holds) return;
    if (!text_.empty()) text_ += "; ";
    (add(parts), ...);
  }

  void within(int value, int most, const char* name) {
    require(value >= 1 && value <= most, name, " is ", value, ", must be 1 to ", most);
  }

  void tokens(const std::vector<int64_t>& ids, size_t vocab_size, const char* what) {
    const auto outside = [vocab_size](int64_t id) { return id < 0 || static_cast<size_t>(id) >= vocab_size; };
    const auto found = std::find_if(ids.begin(), ids.end(), outside);
    if (found != ids.end()) require(false, what, " token id ", *found, " is outside the vocabulary of ", vocab_size);
  }

  std::string text() const { return text_; }

 private:
  template <class Part>
  void add(const Part& part) {
    if constexpr (std::is_integral_v<Part>) {
      text_ += std::to_string(part);
    } else if constexpr (std::is_floating_point_v<Part>) {
      text_ += number_text(part);
    } else {
      text_ += part;
    }
  }

  std::string text_;
};

}  // namespace

std::string GenerationOptions::faults(size_t vocab_size) const {
  Faults faults;
  faults.within(num_beams, kMaxBeams, "num_beams");
  faults.within(num_return_sequences, kMaxDraws, "num_return_sequences");
  faults.require(draws_independently() || num_return_sequences <= num_beams, "num_return_sequences is ",
                 num_return_sequences, ", must be 1 to num_beams (", num_beams, "), but with do_sample and 1 beam");
  faults.within(max_new_tokens, kMaxTokens, "max_new_tokens");
  faults.require(min_new_tokens >= 0, "min_new_tokens is ", min_new_tokens, ", must be at least 0");
  faults.require(std::isfinite(length_penalty), "length_penalty is ", length_penalty, ", must be a finite number");
  faults.require(positive(repetition_penalty), "repetition_penalty is ", repetition_penalty,
                 ", must be a finite number above 0");
  faults.require(no_repeat_ngram_size >= 0, "no_repeat_ngram_size is ", no_repeat_ngram_size, ", must be at least 0");
  faults.require(positive(temperature), "temperature is ", temperature, ", must be a finite number above 0");
  faults.require(top_k >= 0, "top_k is ", top_k, ", must be at least 0");
  faults.require(top_p >= 0 && top_p <= 1, "top_p is ", top_p, ", must be 0 to 1");
  faults.require(min_p >= 0 && min_p <= 1, "min_p is ", min_p, ", must be 0 to 1");
  faults.require(max_time >= 0, "max_time is ", max_time, ", must be at least 0 seconds");
  faults.tokens(eos_token_ids, vocab_size, "eos");
  if (image_token_id >= 0) faults.tokens({image_token_id}, vocab_size, "image");
  faults.tokens(forced_prefix, vocab_size, "forced_prefix");
  for (const auto& word : bad_words_ids) {
    faults.require(!word.empty(), "a bad word has no tokens");
    faults.tokens(word, vocab_size, "bad word");
  }
  for (const auto& text : stop_strings) faults.require(!text.empty(), "a stop string is empty");
  faults.require(stop_strings.empty() || vocabulary != nullptr, "stop_strings need a vocabulary");
  faults.require(vocabulary == nullptr || vocabulary->size() == vocab_size, "the vocabulary has ",
                 vocabulary ? vocabulary->size() : 0, " tokens, but the language model ", vocab_size);
  faults.require(num_beams < 1 || num_beams > kMaxBeams || candidate_count() + eos_token_ids.size() <= vocab_size,
                 "num_beams is ", num_beams, ", too many for a vocabulary of ", vocab_size);
  const auto foreign = [vocab_size](const auto& guide) { return guide->vocab_size() != vocab_size; };
  faults.require(std::none_of(guides.begin(), guides.end(), foreign), "guides are of another vocabulary");
  faults.require(repeated_words == nullptr || repeated_words->vocab_size() == vocab_size,
                 "repeated_words are of another vocabulary");
  return faults.text();
}

size_t GenerationOptions::candidate_count() const {
  return std::max<size_t>(2, 1 + eos_token_ids.size()) * static_cast<size_t>(num_beams);
}

void GenerationOptions::validate(size_t vocab_size) const {
  const std::string found = faults(vocab_size);
  if (!found.empty()) throw std::runtime_error("bad generation options: " + found);
}

}  // namespace blip2rt
