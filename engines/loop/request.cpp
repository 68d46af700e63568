// Checks requests, and hands tokens from the computing thread to the caller's.
#include "loop/request.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace blip2rt {

void check_prompts(const Prefix& prefix, const Prompts& prompts, const Generator& generator) {
  const int vocab_size = generator.shape().vocab_size;
  if (static_cast<size_t>(prefix.images) != prompts.size()) {
    throw std::runtime_error("prefix_embeds has " + std::to_string(prefix.images) + " images but there are " +
                             std::to_string(prompts.size()) + " prompts");
  }
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prefix.length == 0 && prompts[i].empty()) {
      throw std::runtime_error("image " + std::to_string(i) + " has neither prefix nor prompt");
    }
    for (int64_t token : prompts[i]) {
      if (token >= 0 && token < vocab_size) continue;
      throw std::runtime_error("prompt " + std::to_string(i) + " has token id " + std::to_string(token) +
                               ", outside the vocabulary of " + std::to_string(vocab_size));
    }
  }
}

Clock::time_point deadline_after(double seconds) {
  const std::chrono::duration<double> longest = std::chrono::hours(24 * 365);
  const std::chrono::duration<double> given(seconds);
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::min(given, longest));
}

std::shared_ptr<const float> copied(const Prefix& prefix, int hidden_size) {
  const size_t size =
      static_cast<size_t>(prefix.images) * static_cast<size_t>(prefix.length) * static_cast<size_t>(hidden_size);
  const auto values = std::make_shared<std::vector<float>>(prefix.data, prefix.data + size);
  return {values, values->data()};
}

std::vector<Request> requests_of(const Generator& generator, const std::shared_ptr<const float>& prefix,
                                 const Prefix& shape, Prompts prompts, const GenerationOptions& options) {
  check_prompts(shape, prompts, generator);
  options.validate(static_cast<size_t>(generator.shape().vocab_size));
  if (!options.guides.empty() && options.guides.size() != prompts.size()) {
    throw std::runtime_error("give a guide for every image, or none");
  }
  const size_t size = static_cast<size_t>(shape.length) * static_cast<size_t>(generator.shape().hidden_size);
  std::vector<Request> requests(prompts.size());
  for (size_t i = 0; i < prompts.size(); ++i) {
    Request& one = requests[i];
    one.prefix = std::shared_ptr<const float>(prefix, prefix.get() + i * size);
    one.prefix_length = shape.length;
    one.prompt = std::move(prompts[i]);
    one.options = options;
    one.options.first_image += i;
    if (!options.guides.empty()) one.options.guides = {options.guides[i]};
    one.number = i;
  }
  return requests;
}

bool TokenQueue::wait(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto news = [this] { return open_ == 0 || (each_token_ && !added_.empty()); };
  return change_.wait_for(lock, std::chrono::duration<double>(seconds), news);
}

std::vector<NewToken> TokenQueue::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(added_, {});
}

bool TokenQueue::done() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return open_ == 0;
}

void TokenQueue::open() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++open_;
}

void TokenQueue::push(const NewToken* first, size_t count) {
  const std::lock_guard<std::mutex> lock(mutex_);
  added_.insert(added_.end(), first, first + count);
  changed(each_token_);
}

void TokenQueue::close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  --open_;
  changed(open_ == 0);
}

void TokenQueue::listen(std::function<void()> listener) {
  const std::lock_guard<std::mutex> lock(mutex_);
  listeners_.push_back(std::move(listener));
}

void TokenQueue::changed(bool wake) {
  for (const auto& listener : listeners_) listener();
  if (wake) change_.notify_all();
}

Ticket::Ticket(Request request, std::shared_ptr<TokenQueue> queue)
    : request_(std::move(request)), queue_(std::move(queue)), deadline_(deadline_after(request_.options.max_time)) {
  if (queue_) queue_->open();
}

void Ticket::push(const NewToken* first, size_t count) {
  if (queue_ && count > 0) queue_->push(first, count);
}

void Ticket::end(Outcome outcome) {
  outcome_ = std::move(outcome);
  done_.store(true, std::memory_order_release);
  if (queue_) queue_->close();
}

void Ticket::fail(std::exception_ptr failure) {
  Outcome outcome;
  outcome.failure = std::move(failure);
  end(std::move(outcome));
}

}  // namespace blip2rt
