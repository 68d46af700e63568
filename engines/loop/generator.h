// A language model to generate with: its graphs, checked against docs/inside/bundle.md, and its geometry.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "graphs/session.h"

namespace blip2rt {

struct LlmShape {
  int layers;
  int kv_heads;
  int head_dim;
  int hidden_size;
  int vocab_size;
};

// The heads of an encoder-decoder's attention to its encoder.
struct CrossShape {
  int heads = 0;
  int head_dim = 0;
};

// Of an engine whose attention takes no CacheRow: each row of a run has a cache of its own.
struct RowShape {
  int rows = 0;      // of a run, at most; 0: the core's attention runs
  int capacity = 0;  // positions of a row, of its encoder's output too
  DType dtype = DType::kFloat32;
};

// Token ids, for each image.
using Prompts = std::vector<std::vector<int64_t>>;

// Borrows prefix_embeds (images, length, hidden_size).
struct Prefix {
  const float* data;
  int images;
  int length;
};

class Generator {
 public:
  // Throws if the graphs' inputs and outputs do not meet the contract. An encoder-decoder has `encoder`, and the token
  // that its decoder starts from. The sessions must outlive the generator.
  Generator(const Session& embed, const Session& llm, const LlmShape& shape, const Session* encoder = nullptr,
            int64_t decoder_start_token_id = 0);

  const Session& embed() const { return embed_; }
  const Session& llm() const { return llm_; }
  const Session* encoder() const { return encoder_; }
  const LlmShape& shape() const { return shape_; }
  // Whether keys and values of a prompt's first positions can be kept for later prompts.
  bool reuses_prefixes() const { return encoder_ == nullptr; }
  const CrossShape& cross_shape() const { return cross_shape_; }
  int64_t decoder_start_token_id() const { return decoder_start_token_id_; }
  const RowShape& rows() const { return rows_; }

  // Keeps what a batch has set up for the next one, or nullptr: caches in an engine's memory, and runs of its graphs.
  std::shared_ptr<void> take_idle() const;
  void give_back(std::shared_ptr<void> idle) const;

 private:
  void set_rows();
  void check_encoder(const std::vector<std::string>& cross);

  const Session& embed_;
  const Session& llm_;
  const Session* encoder_;
  LlmShape shape_;
  CrossShape cross_shape_;
  RowShape rows_;
  int64_t decoder_start_token_id_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<void>> idle_;
};

}  // namespace blip2rt
