// Keeps a conversation's cache in step with what was said. Knows token ids.
#include "loop/chat.h"

#include <stdexcept>
#include <string>
#include <utility>

namespace blip2rt {

Chat::Chat(const Generator& generator, const Prefix& prefix, int max_rows, int capacity)
    : generator_(generator), prefix_length_(prefix.length) {
  if (generator.encoder() != nullptr) {
    throw std::runtime_error("an encoder-decoder keeps no conversation: ask with the whole history instead");
  }
  if (prefix.images != 1) {
    throw std::runtime_error("a chat is about 1 image, not " + std::to_string(prefix.images));
  }
  if (max_rows < 1 || capacity < 1) throw std::runtime_error("max_rows and capacity must be at least 1");
  const auto size = static_cast<size_t>(prefix.length) * static_cast<size_t>(generator.shape().hidden_size);
  prefix_.assign(prefix.data, prefix.data + size);
  decoder_ = std::make_shared<Decoder>(generator, max_rows, capacity);
}

std::shared_ptr<Generation> Chat::ask(std::vector<int64_t> prompt, const GenerationOptions& options) {
  generator_.llm().check_process();
  const Decoder::InUse in_use(*decoder_);
  remember();
  prompt.insert(prompt.begin(), pending_.begin(), pending_.end());
  const KvCache& cache = decoder_->cache();
  if (options.rows_each() > cache.rows()) {
    throw std::runtime_error("num_beams is " + std::to_string(options.rows_each()) + ", more than the chat's " +
                             std::to_string(cache.rows()));
  }
  const Prefix prefix{prefix_.data(), 1, past_ == 0 ? prefix_length_ : 0};
  const size_t needed =
      static_cast<size_t>(prefix.length) + prompt.size() + options.forced_prefix.size() + options.max_new_tokens;
  if (static_cast<size_t>(past_) + needed > static_cast<size_t>(cache.capacity())) {
    throw std::runtime_error("the chat is full: " + std::to_string(past_) + " of its " +
                             std::to_string(cache.capacity()) + " positions are used, and this needs " +
                             std::to_string(needed) + " more");
  }
  std::vector<int64_t> asked, read = prompt;
  read.insert(read.end(), options.forced_prefix.begin(), options.forced_prefix.end());
  options.append_image(asked, static_cast<size_t>(prefix.length));
  asked.insert(asked.end(), read.begin(), read.end());
  current_ = std::make_shared<Generation>(generator_, decoder_, prefix, past_, std::move(prompt), options, said_);
  asked_ = std::move(asked);
  read_ = std::move(read);
  return current_;
}

// Keeps what the current answer has read and said. An answer that was never stepped leaves nothing.
void Chat::remember() {
  if (current_ == nullptr) return;
  current_->close();
  const Generation::Kept kept = current_->kept();
  if (kept.positions > past_) {
    const std::vector<int64_t> answer = current_->results()[0].front().tokens;
    if (generator_.shape().bidirectional_prompt) {  // it would have been read otherwise, had it seen what comes now
      pending_ = read_;
      pending_.insert(pending_.end(), answer.begin(), answer.end());
    } else {
      pending_.assign(answer.begin() + kept.in_cache, answer.end());
      said_.insert(said_.end(), asked_.begin(), asked_.end());
      said_.insert(said_.end(), answer.begin(), answer.begin() + kept.in_cache);
      past_ = kept.positions;
    }
  }
  current_ = nullptr;
}

}  // namespace blip2rt
