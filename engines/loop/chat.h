// A conversation about one image: what was said stays in the cache, so that a question costs only its own tokens.
// Knows token ids; nothing about how questions are worded.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "loop/decoder.h"
#include "loop/generation.h"
#include "loop/generator.h"

namespace blip2rt {

class Chat {
 public:
  // prefix_embeds (1, length, hidden_size) is copied. `max_rows`: the most beams of an answer. `capacity`: positions of
  // image, questions and answers together; memory is touched as it fills. `generator` must outlive the chat.
  Chat(const Generator& generator, const Prefix& prefix, int max_rows, int capacity);

  // The answer to come after [image][all that was said][prompt]. Ends the answer before it where that is: what it said
  // so far has been said. Throws when the options make no sense or the capacity is used up; then nothing has changed.
  std::shared_ptr<Generation> ask(std::vector<int64_t> prompt, const GenerationOptions& options);

  int positions() const { return past_; }  // read and kept so far

 private:
  void remember();

  const Generator& generator_;
  std::vector<float> prefix_;
  int prefix_length_;
  std::shared_ptr<Decoder> decoder_;
  std::shared_ptr<Generation> current_;
  int past_ = 0;
  std::vector<int64_t> pending_;  // said, but not in the cache
};

}  // namespace blip2rt
