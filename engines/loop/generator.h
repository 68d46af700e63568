// A language model that can be generated with: its graphs, checked against the contract of docs/design.md, and its
// geometry. Knows the tensor names of the graphs; nothing about images, text or Python.
#pragma once

#include <cstdint>

#include "graphs/session.h"

namespace blip2rt {

struct LlmShape {
  int layers;
  int kv_heads;
  int head_dim;
  int hidden_size;
  int vocab_size;
};

// Of an encoder-decoder: heads of its attention to the encoder.
struct CrossShape {
  int heads = 0;
  int head_dim = 0;
};

// prefix_embeds (images, length, hidden_size), borrowed.
struct Prefix {
  const float* data;
  int images;
  int length;
};

class Generator {
 public:
  // The sessions must outlive the generator. `encoder` and the token that the decoder starts from are an
  // encoder-decoder's, null and ignored otherwise. Throws when inputs and outputs are not the contract's.
  Generator(const Session& embed, const Session& llm, const LlmShape& shape, const Session* encoder = nullptr,
            int64_t decoder_start_token_id = 0);

  const Session& embed() const { return embed_; }
  const Session& llm() const { return llm_; }
  const Session* encoder() const { return encoder_; }
  const LlmShape& shape() const { return shape_; }
  const CrossShape& cross_shape() const { return cross_shape_; }
  int64_t decoder_start_token_id() const { return decoder_start_token_id_; }

 private:
  const Session& embed_;
  const Session& llm_;
  const Session* encoder_;
  LlmShape shape_;
  CrossShape cross_shape_;
  int64_t decoder_start_token_id_;
};

}  // namespace blip2rt
