// Makes the blocks of searches (search_block.h), takes their steps on the CPU, and reads what they found. Knows scores
// and token ids; nothing about graphs, caches or other images.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "search/cpu_reader.h"
#include "search/options.h"
#include "search/search_block.h"

namespace blip2rt {

struct Hypothesis {
  std::vector<int64_t> tokens;  // new tokens only, without the stop token
  float score;                  // sum of log-probabilities / length^length_penalty, the stop token counted
};

// The memory of a block, in words of 8 bytes, which align it.
using BlockMemory = std::vector<uint64_t>;

// Makes a block before its first step. `context`: tokens before the answer; logits processors and stop strings see
// them. Sampling draws from `random`. `min_context_room`: context tokens that the block has room for, at least; with
// the same room blocks have the same size.
BlockMemory make_block(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& context,
                       const Random& random, size_t min_context_room = 0);

// Throws std::runtime_error where a step set block.fault.
void throw_on_fault(const SearchBlock& block);

// Returns the best num_return_sequences sequences, best first. Before the search is done, returns what there is.
std::vector<Hypothesis> best_sequences(const SearchBlock& block, const GenerationOptions& options);

// Returns, with one beam, the answer's tokens from `first` on, without the stop token.
std::vector<int64_t> tokens_since(const SearchBlock& block, int first);

// One answer's search on the CPU.
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

  // Returns, with one beam, the token that the step added to the answer; nothing when that was a stop token.
  std::optional<int64_t> added() const;

  std::vector<Hypothesis> results() const { return best_sequences(block(), options_); }

 private:
  SearchBlock& block() { return *reinterpret_cast<SearchBlock*>(memory_.data()); }
  const SearchBlock& block() const { return *reinterpret_cast<const SearchBlock*>(memory_.data()); }

  const GenerationOptions& options_;
  BlockMemory memory_;
  CpuReader reader_;
};

}  // namespace blip2rt
