// Makes the blocks in which answers are searched for (search_block.h), takes their steps on the CPU, and reads what
// they found. Knows scores and token ids; nothing about graphs, caches or other images.
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

// Memory of a block: of 8 bytes each, so that it is aligned.
using BlockMemory = std::vector<uint64_t>;

// A block before its first step. `given`: tokens with which the answer begins; processors and stop strings see them.
// `random` is drawn from when sampling.
BlockMemory make_block(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& given,
                       const Random& random);

// Throws what a step has run into, if it has.
void check_fault(const SearchBlock& block);

// The best num_return_sequences, best first. Before the search is done, what there is.
std::vector<Hypothesis> results_of(const SearchBlock& block, const GenerationOptions& options);

// With one beam: the tokens of the answer from the `first` on, the stop token left out.
std::vector<int64_t> tokens_from(const SearchBlock& block, int first);

// One answer's search on the CPU.
class Search {
 public:
  // `options` must outlive the search.
  Search(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& given, const Random& random);

  // Takes one step; allocates nothing. See SearchBlock::advance.
  void advance(float* scores, int rows, bool last);

  bool done() const { return block().done != 0; }
  int length() const { return block().length; }
  int64_t token(int beam) const { return block().tokens()[beam]; }
  int parent(int beam) const { return block().parents()[beam]; }

  // With one beam: the token that the step added to the answer; nothing when that was a stop token.
  std::optional<int64_t> added() const;

  std::vector<Hypothesis> results() const { return results_of(block(), options_); }

 private:
  SearchBlock& block() { return *reinterpret_cast<SearchBlock*>(memory_.data()); }
  const SearchBlock& block() const { return *reinterpret_cast<const SearchBlock*>(memory_.data()); }

  const GenerationOptions& options_;
  BlockMemory memory_;
  CpuReader reader_;
};

}  // namespace blip2rt
