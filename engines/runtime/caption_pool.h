// A pool of captions of other pictures, with their embeddings: those nearest to a picture guide its caption, and the
// first token of answers about it. Python's blip2rt/matching/pool.py embeds the captions of a new one. Any thread may
// use a pool.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/system.h"
#include "search/guide.h"
#include "search/vocabulary.h"

namespace blip2rt {

struct NearCaption {
  float distance;  // negated cosine
  size_t number;

  bool operator<(const NearCaption& other) const {
    return distance < other.distance || (distance == other.distance && number < other.number);
  }
};

// What a pool's file is made of.
struct PoolCaptions {
  std::string fingerprint;  // see CaptionPool::fingerprint
  size_t embed_width, vocab_size;
  std::vector<float> projection;  // (E, D): embeddings @ projection are codes
  std::vector<float> codes;       // (N, D)
  std::vector<TokenText> texts;   // (N)
};

class CaptionPool : public std::enable_shared_from_this<CaptionPool> {
 public:
  // Maps a file, or takes its bytes. Throws std::runtime_error with the reason alone.
  static std::shared_ptr<const CaptionPool> open(const std::string& path);
  static std::shared_ptr<const CaptionPool> of_bytes(std::string bytes);

  // The contents of a file; whether a file begins like one. Throws std::runtime_error if the sizes do not fit.
  static std::string pack(const PoolCaptions& captions);
  static bool is_pool(std::string_view beginning);

  // The same contents for another model with equal embeddings and tokens.
  static std::string with_fingerprint(std::string file, std::string_view fingerprint);

  // Of the model whose embeddings and tokens the pool has.
  std::string_view fingerprint() const { return fingerprint_; }
  size_t size() const { return count_; }

  // image_embeds (queries, width) -> the captions nearest to the image, by the largest cosine over queries. Throws
  // std::runtime_error if the width is not that of the pool's model, or the file is damaged.
  std::vector<TokenText> nearest(const float* image_embeds, size_t queries, size_t width) const;

  // The same as a guide. `end`: the token that ends captions.
  std::shared_ptr<const Guide> guide(const float* image_embeds, size_t queries, size_t width, int64_t end) const;

  // Guides the answer to a question: its first token is likelier if the nearest captions have it more often than others
  // do, and less likely if the question has it (unless it offers a choice), or asks for things and it names one.
  // `asked`: the question's tokens. `vocabulary`: null unless the question asks for a plural. Throws std::runtime_error
  // as `nearest` does.
  std::shared_ptr<const Guide> answer_guide(const float* image_embeds, size_t queries, size_t width,
                                            const std::string& question, const TokenText& asked,
                                            const Vocabulary* vocabulary) const;

 private:
  CaptionPool() = default;
  void read(std::string_view bytes);
  std::vector<NearCaption> nearest_captions(const float* image_embeds, size_t queries, size_t width) const;
  TokenText text_of(size_t caption) const;
  std::vector<float> largest_products(std::vector<float> rows, size_t queries) const;

  std::optional<MappedFile> file_;
  std::string bytes_;
  std::string_view fingerprint_;
  size_t count_ = 0, embed_width_ = 0, code_width_ = 0, vocab_size_ = 0, token_count_ = 0, token_bytes_ = 0;
  const float *projection_ = nullptr, *scales_ = nullptr, *rarity_ = nullptr;  // (E, D), (N), (V)
  const int8_t* codes_ = nullptr;                                              // (N, D)
  const uint32_t* starts_ = nullptr;                                           // (N + 1)
  const char* tokens_ = nullptr;                                               // of all captions, one after the other
};

}  // namespace blip2rt
