// The generation loop: prefix embeddings and prompts in, token ids out. Knows the tensor names of the
// `embed` and `llm` graphs (docs/design.md); nothing about images, text or Python.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "search.h"
#include "session.h"

namespace blip2rt {

struct LlmShape {
  int layers;
  int kv_heads;
  int head_dim;
  int hidden_size;
  int vocab_size;
};

// prefix_embeds (images, length, hidden_size), borrowed.
struct Prefix {
  const float* data;
  int images;
  int length;
};

class Generator {
 public:
  // The sessions must outlive the generator. Throws when their inputs and outputs are not the contract's.
  Generator(const Session& embed, const Session& llm, const LlmShape& shape);

  // For each image its best sequences, best first. `before_step` runs before every decode step; what it
  // throws ends the call. Holds no state between calls: any number of threads may call it at once.
  std::vector<std::vector<Hypothesis>> generate(const Prefix& prefix, const std::vector<std::vector<int64_t>>& prompts,
                                                const SearchOptions& options,
                                                const std::function<void()>& before_step) const;

  const LlmShape& shape() const { return shape_; }

 private:
  const Session& embed_;
  const Session& llm_;
  LlmShape shape_;
};

}  // namespace blip2rt
