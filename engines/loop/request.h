// What is asked of a language model about one image, and what comes of it. Whoever asks reads while others compute.
// Knows tokens and threads; nothing about rows, caches or graphs.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "loop/generator.h"
#include "search/options.h"
#include "search/search.h"
#include "search/search_batch.h"

namespace blip2rt {

using Clock = std::chrono::steady_clock;

// Throws where prompts do not fit the images or the vocabulary.
void check_prompts(const Prefix& prefix, const Prompts& prompts, const Generator& generator);

// The time when so many seconds are over.
Clock::time_point deadline_after(double seconds);

struct Request {
  std::vector<float> prefix;  // (prefix_length, hidden_size); empty: text alone
  int prefix_length = 0;
  std::string image;  // what names the prefix: what is read is kept under it; empty: nothing is kept
  std::vector<int64_t> prompt;
  GenerationOptions options;
  size_t number = 0;  // of the image, among those that were asked about together
};

// Where the tokens of requests come in that one caller made together. Any thread may use it.
class Mailbox {
 public:
  // `each_token`: wake who waits at every token, and not at the end alone.
  explicit Mailbox(bool each_token) : each_token_(each_token) {}

  // Waits until there is something new, or so many seconds are over. Returns whether there is.
  bool wait(double seconds);

  // Returns the tokens that came since the last call.
  std::vector<NewToken> take();

  // Whether every request has ended.
  bool done() const;

  void expect();  // one request more
  void post(const std::vector<NewToken>& added);
  void end();  // one request less

  // Calls `tell` after every change from now on, in the thread that computes: it must be quick, and not throw.
  void watch(std::function<void()> tell);

 private:
  void changed(bool wake);  // while the mutex is held

  const bool each_token_;
  mutable std::mutex mutex_;
  std::condition_variable change_;
  std::vector<NewToken> added_;
  size_t open_ = 0;
  std::vector<std::function<void()>> watchers_;
};

// How a request went.
struct Outcome {
  std::vector<Hypothesis> results;  // best first; of draws, in the order drawn
  int prompt_length = 0;            // positions that were read: image, prompt and forced prefix
  int kept_length = 0;              // those of them that had been read before
  int steps = 0;                    // so many tokens has a text that did not end before
  bool timed_out = false;           // max_time ended it
  std::exception_ptr failure;
};

class Ticket {
 public:
  Ticket(Request request, std::shared_ptr<Mailbox> mailbox);

  // Asks for an early end. What there is then is the result.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  const Request& request() const { return request_; }
  Clock::time_point deadline() const { return deadline_; }
  bool done() const { return done_.load(std::memory_order_acquire); }
  const Outcome& outcome() const { return outcome_; }  // once done

  // For who computes: tells what was added; ends the request.
  void post(const std::vector<NewToken>& added) { mailbox_->post(added); }
  void end(Outcome outcome);
  void fail(std::exception_ptr failure);

 private:
  const Request request_;
  const std::shared_ptr<Mailbox> mailbox_;
  const Clock::time_point deadline_;
  std::atomic<bool> cancelled_{false}, done_{false};
  Outcome outcome_;
};

}  // namespace blip2rt
