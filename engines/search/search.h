// Creates search blocks (search_block.h), steps them on the CPU, and reads their results.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "search/cpu_reader.h"
#include "search/options.h"
#include "search/search_block.h"

namespace blip2rt {

struct Hypothesis {
  std::vector<int64_t> tokens;  // new tokens only, without the stop token
  float score;                  // sum of log-probabilities / length^length_penalty, including the stop token
};

// The memory of a block, in words of 8 bytes for alignment.
using BlockMemory = std::vector<uint64_t>;

// Creates a block before its first step. `context`: tokens before the answer that logits processors and stop strings
// see. Sampling uses `random`.
BlockMemory make_block(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& context,
                       const Random& random);

// Throws std::runtime_error if a step set block.fault.
void throw_on_fault(const SearchBlock& block);

// Returns the numbers of finished answers, best first: those that agree best with the guide, if there is one.
std::vector<int32_t> ranking(const SearchBlock& block, const GenerationOptions& options);

// Returns the best num_return_sequences sequences, best first; before the search is done, those found so far.
std::vector<Hypothesis> best_sequences(const SearchBlock& block, const GenerationOptions& options);

// A view of tokens in a block.
struct Tokens {
  const int32_t* first = nullptr;
  int count = 0;
};

// Returns the tokens of the best answer that no later step can change, without the stop token: those that the best
// finished answer and all running beams share.
Tokens settled_tokens(const SearchBlock& block);

// The search of one answer on the CPU.
class Search {
 public:
  // `options` must outlive the search.
  Search(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& context,
         const Random& random);

  // Takes one step; allocates nothing. See SearchBlock::advance.
  void advance(float* scores, int rows, bool last);

  bool done() const { return block().done != 0; }
  int length() const { return block().length; }
  int64_t token(int beam) const { return block().tokens()[beam]; }
  int parent(int beam) const { return block().parents()[beam]; }

  // Tokens that no later step can change. With a guide that ranks beams: none before the end.
  Tokens settled() const;

  std::vector<Hypothesis> results() const { return best_sequences(block(), options_); }

 private:
  const Guide* guide() const { return options_.guides.empty() ? nullptr : options_.guides.front().get(); }
  SearchBlock& block() { return *reinterpret_cast<SearchBlock*>(memory_.data()); }
  const SearchBlock& block() const { return *reinterpret_cast<const SearchBlock*>(memory_.data()); }

  const GenerationOptions& options_;
  BlockMemory memory_;
  CpuReader reader_;
  std::vector<double> scratch_;  // of the guide
};

}  // namespace blip2rt
