// A conversation about one image. What was said stays in the batch's pool, so a question costs only its own tokens. If
// the positions of the model's prompts see each other, everything that was said is read again. Knows token ids only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "loop/generation.h"
#include "loop/generator.h"
#include "loop/request.h"

namespace blip2rt {

class Chat {
 public:
  // Copies the prefix (1, length, hidden_size). `max_rows`: the most beams of an answer. `capacity`: positions of
  // image, questions and answers together; their memory is touched as it fills. `generator` must outlive the chat.
  Chat(const Generator& generator, const Prefix& prefix, int max_rows, int capacity);

  // Begins the answer to [image][all that was said][prompt]. Ends the answer before it, and keeps what that has said.
  // Throws if options make no sense or the capacity is used up; then nothing has changed.
  std::shared_ptr<Generation> ask(std::vector<int64_t> prompt, const GenerationOptions& options);

  int positions() const { return past_; }  // of the pool, that hold the conversation

 private:
  void remember();

  const Generator& generator_;
  std::shared_ptr<const float> prefix_;
  int prefix_length_, max_rows_, capacity_;
  std::shared_ptr<Batch> batch_;
  std::shared_ptr<Generation> current_;
  int past_ = 0;
  std::vector<int64_t> pending_;   // tokens that were said, but are not in the pool
  std::vector<int64_t> history_;   // tokens of the `past_` positions
  std::vector<int64_t> question_;  // tokens that the current answer reads
  std::vector<int64_t> image_;     // tokens that stand for the image's positions, if the current answer reads them
};

}  // namespace blip2rt
