// The searches of a batch of images in one piece of memory, to be taken to another device, advanced there, and read
// when it has come back. Knows images, draws and token ids; nothing about devices.
#pragma once

#include <cstdint>
#include <vector>

#include "search/options.h"
#include "search/search.h"

namespace blip2rt {

// A token that a step added to an answer: of which image, and which of its draws.
struct NewToken {
  size_t image;
  size_t draw;
  int64_t token;
};

class SearchBatch {
 public:
  // An answer for each image, or one for each of its draws; `given` as in make_block. Throws when options make no
  // sense.
  SearchBatch(size_t images, const std::vector<int64_t>& given, size_t vocab_size, GenerationOptions options);

  // The blocks, one after the other, each `stride()` bytes. Overwritten when they come back from the device.
  BlockMemory& memory() { return memory_; }
  size_t stride() const { return stride_; }
  size_t answers() const { return answers_.size(); }
  size_t image(size_t answer) const { return answers_[answer].image; }
  const GenerationOptions& options() const { return options_; }

  // One step of every answer on the CPU, with the rows of scores (see SearchBlock::advance) of one after the other.
  void advance(float* scores, bool last);

  // Throws what an answer has run into, if one has.
  void check() const;
  bool done() const;

  // Tokens that came since the last call; greedy search and sampling only.
  std::vector<NewToken> added();

  // For each image its best sequences. Before done(), what there is.
  std::vector<std::vector<Hypothesis>> results() const;

 private:
  struct Answer {
    size_t image, draw;
    int told = 0;  // tokens that added() gave
  };

  SearchBlock& block(size_t answer) {
    return *reinterpret_cast<SearchBlock*>(memory_.data() + answer * stride_ / sizeof(uint64_t));
  }
  const SearchBlock& block(size_t answer) const {
    return *reinterpret_cast<const SearchBlock*>(memory_.data() + answer * stride_ / sizeof(uint64_t));
  }

  GenerationOptions options_;
  size_t images_, vocab_size_, stride_ = 0;
  std::vector<Answer> answers_;
  BlockMemory memory_;
};

}  // namespace blip2rt
