// Keeps the pool of a conversation in step with what was said. Knows token ids.
#include "loop/chat.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace blip2rt {

Chat::Chat(const Generator& generator, const Prefix& prefix, int max_rows, int capacity)
    : generator_(generator), prefix_length_(prefix.length), max_rows_(max_rows), capacity_(capacity) {
  if (generator.encoder() != nullptr) {
    throw std::runtime_error("an encoder-decoder keeps no conversation: ask with the whole history instead");
  }
  if (prefix.images != 1) {
    throw std::runtime_error("a chat is about 1 image, not " + std::to_string(prefix.images));
  }
  if (max_rows < 1 || capacity < 1) throw std::runtime_error("max_rows and capacity must be at least 1");
  prefix_ = copied(prefix, generator.shape().hidden_size);
  BatchSizes sizes;
  sizes.rows = max_rows;
  sizes.read = kReadAll;
  // Beams share the conversation, but each may say as much as there is room for.
  if (__builtin_mul_overflow(max_rows, capacity, &sizes.positions)) throw std::bad_alloc();
  batch_ = std::make_shared<Batch>(generator, sizes);
}

std::shared_ptr<Generation> Chat::ask(std::vector<int64_t> prompt, const GenerationOptions& options) {
  generator_.llm().check_process();
  const Batch::Lock lock(*batch_);
  remember();
  prompt.insert(prompt.begin(), pending_.begin(), pending_.end());
  if (options.rows_each() > max_rows_) {
    throw std::runtime_error("num_beams is " + std::to_string(options.rows_each()) + ", more than the chat's " +
                             std::to_string(max_rows_));
  }
  const Prefix prefix{prefix_.get(), 1, past_ == 0 ? prefix_length_ : 0};
  const size_t needed =
      static_cast<size_t>(prefix.length) + prompt.size() + options.forced_prefix.size() + options.max_new_tokens;
  if (static_cast<size_t>(past_) + needed > static_cast<size_t>(capacity_)) {
    throw std::runtime_error("the chat is full: " + std::to_string(past_) + " of its " + std::to_string(capacity_) +
                             " positions are used, and this needs " + std::to_string(needed) + " more");
  }
  std::vector<int64_t> question = prompt, image;
  question.insert(question.end(), options.forced_prefix.begin(), options.forced_prefix.end());
  options.append_image(image, static_cast<size_t>(prefix.length));
  Request request = std::move(requests_of(generator_, prefix_, prefix, {std::move(prompt)}, options).front());
  request.past = past_;
  request.history = history_;
  current_ = std::make_shared<Generation>(generator_, batch_, std::move(request));
  question_ = std::move(question);
  image_ = std::move(image);
  return current_;
}

// Keeps what the current answer has read and said. An answer that was never stepped leaves nothing.
void Chat::remember() {
  if (current_ == nullptr) return;
  const Outcome outcome = current_->cancel();
  current_ = nullptr;
  if (outcome.tokens_chosen == 0 || outcome.results.empty()) return;
  const std::vector<int64_t>& answer = outcome.results.front().tokens;
  if (!generator_.reuses_prefixes()) {
    pending_ = question_;
    pending_.insert(pending_.end(), answer.begin(), answer.end());
    return;
  }
  const auto cached = answer.begin() + outcome.answer_cached;
  pending_.assign(cached, answer.end());
  for (const auto* said : {&image_, &question_}) history_.insert(history_.end(), said->begin(), said->end());
  history_.insert(history_.end(), answer.begin(), cached);
  past_ = outcome.prompt_length + outcome.answer_cached;
}

}  // namespace blip2rt
