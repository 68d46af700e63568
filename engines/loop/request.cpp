// Hands tokens from the thread that computes them to the one that asked.
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

bool Mailbox::wait(double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  const auto news = [this] { return open_ == 0 || (each_token_ && !added_.empty()); };
  return change_.wait_for(lock, std::chrono::duration<double>(seconds), news);
}

std::vector<NewToken> Mailbox::take() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return std::exchange(added_, {});
}

bool Mailbox::done() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return open_ == 0;
}

void Mailbox::expect() {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++open_;
}

void Mailbox::post(const std::vector<NewToken>& added) {
  const std::lock_guard<std::mutex> lock(mutex_);
  added_.insert(added_.end(), added.begin(), added.end());
  changed(each_token_);
}

void Mailbox::end() {
  const std::lock_guard<std::mutex> lock(mutex_);
  --open_;
  changed(open_ == 0);
}

void Mailbox::watch(std::function<void()> tell) {
  const std::lock_guard<std::mutex> lock(mutex_);
  watchers_.push_back(std::move(tell));
}

void Mailbox::changed(bool wake) {
  for (const auto& tell : watchers_) tell();
  if (wake) change_.notify_all();
}

Ticket::Ticket(Request request, std::shared_ptr<Mailbox> mailbox)
    : request_(std::move(request)), mailbox_(std::move(mailbox)), deadline_(deadline_after(request_.options.max_time)) {
  mailbox_->expect();
}

void Ticket::end(Outcome outcome) {
  outcome_ = std::move(outcome);
  done_.store(true, std::memory_order_release);
  mailbox_->end();
}

void Ticket::fail(std::exception_ptr failure) {
  Outcome outcome;
  outcome.failure = std::move(failure);
  end(std::move(outcome));
}

}  // namespace blip2rt
