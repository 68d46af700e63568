// The searches of a batch of images in one piece of memory, which can be copied to a device, advanced there, and copied
// back.
#pragma once

#include <cstdint>
#include <vector>

#include "search/options.h"
#include "search/search.h"

namespace blip2rt {

// A token that a step added to an answer, with the answer's image and draw.
struct NewToken {
  size_t image;
  size_t draw;
  int64_t token;
};

class SearchBatch {
 public:
  // Creates an answer for each image, or for each of its draws. `context`: see make_block; `before`: for each image the
  // tokens before that, or an empty list. Throws for invalid options.
  SearchBatch(size_t images, const std::vector<int64_t>& context, size_t vocab_size, GenerationOptions options,
              const std::vector<std::vector<int64_t>>& before = {});

  // The blocks, each of stride() bytes. Data from the device overwrites them.
  BlockMemory& memory() { return memory_; }
  size_t stride() const { return stride_; }
  size_t answers() const { return answers_.size(); }
  size_t image(size_t answer) const { return answers_[answer].image; }
  const GenerationOptions& options() const { return options_; }

  // Takes one step of every answer on the CPU. `scores`: the answers' rows, one answer after the other (see
  // SearchBlock::advance).
  void advance(float* scores, bool last);

  // Throws std::runtime_error if an answer has a fault.
  void check() const;
  bool done() const;

  // Returns the tokens added since the last call; none with beams.
  std::vector<NewToken> added();

  // Returns each image's best sequences; before done(), those found so far.
  std::vector<std::vector<Hypothesis>> results() const;

 private:
  struct Answer {
    size_t image, draw;
    int reported = 0;  // number of tokens that added() has returned
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
