// libFuzzer's entry for pools of captions: a file, and the guide of an image by it.
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "runtime/caption_pool.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const auto pool = blip2rt::CaptionPool::of_bytes({reinterpret_cast<const char*>(data), size});
    const size_t queries = 3, width = 4;  // of the tiny bundle, whose pool is the seed
    const std::vector<float> embeds(queries * width, 0.5F);
    const auto guide = pool->guide(embeds.data(), queries, width, 1);
    blip2rt::Vocabulary vocabulary;
    for (int i = 0; i < 21; ++i) vocabulary.add(" a");
    pool->answer_guide(embeds.data(), queries, width, "what are on it?", {2, 30}, &vocabulary);
    std::vector<float> logits(guide->vocab_size());
    std::vector<double> scratch(guide->scratch_size());
    std::vector<int32_t> tokens;
    for (int i = 0; i < 3; ++i) {
      guide->apply(tokens.data(), i, logits.data(), scratch.data());
      guide->agreement(tokens.data(), tokens.size());
      tokens.push_back(i % static_cast<int32_t>(guide->vocab_size()));
    }
  } catch (const std::runtime_error&) {
  }
  return 0;
}
