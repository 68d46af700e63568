// Holds a conversation about one image. What was said stays in the cache: a question costs only its own tokens. Where a
// prompt's positions see each other, all that was said is read again with it. Knows token ids; nothing about how
// questions are worded.
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
  // Copies the prefix (1, length, hidden_size). `max_rows`: the most beams of an answer. `capacity`: positions of
  // image, questions and answers together; their memory is touched as it fills. `generator` must outlive the chat.
  Chat(const Generator& generator, const Prefix& prefix, int max_rows, int capacity);

  // Begins the answer to [image][all that was said][prompt]. Ends the answer before it where that is, and keeps what it
  // has said. Throws where options make no sense or the capacity is used up; then nothing has changed.
  std::shared_ptr<Generation> ask(std::vector<int64_t> prompt, const GenerationOptions& options);

  int positions() const { return past_; }  // of the cache, that hold what was said

 private:
  void remember();

  const Generator& generator_;
  std::vector<float> prefix_;
  int prefix_length_;
  std::shared_ptr<Decoder> decoder_;
  std::shared_ptr<Generation> current_;
  int past_ = 0;
  std::vector<int64_t> pending_;  // said, but not in the cache
  std::vector<int64_t> said_;     // the tokens of past_
  std::vector<int64_t> asked_;    // what the current answer has read besides them
  std::vector<int64_t> read_;     // the same without the image
};

}  // namespace blip2rt
