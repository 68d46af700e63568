// A request to a language model about one image, and its outcome. One thread computes, others wait and read. Does not
// know rows, caches or graphs.
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

namespace blip2rt {

// A token that a step added to an answer, with the answer's image and draw.
struct NewToken {
  size_t image;
  size_t draw;
  int64_t token;
};

using Clock = std::chrono::steady_clock;

// Throws if prompts do not fit the images or the vocabulary.
void check_prompts(const Prefix& prefix, const Prompts& prompts, const Generator& generator);

// The time `seconds` from now.
Clock::time_point deadline_after(double seconds);

struct Request {
  std::shared_ptr<const float> prefix;  // (prefix_length, hidden_size)
  int prefix_length = 0;                // 0: text only
  std::string cache_key;                // names the prefix in the prefix cache; empty: do not cache
  std::vector<int64_t> prompt;
  GenerationOptions options;
  size_t number = 0;  // of the image, within its call
  // Of a conversation: positions at the start of the batch's pool that earlier requests have left, and their tokens.
  int past = 0;
  std::vector<int64_t> history;
};

// Returns a copy of the embeddings.
std::shared_ptr<const float> copied(const Prefix& prefix, int hidden_size);

// Makes a request for each prompt; `prefix` holds their embeddings one after the other. Throws if prompts do not fit
// the images or the vocabulary, or options make no sense.
std::vector<Request> requests_of(const Generator& generator, const std::shared_ptr<const float>& prefix,
                                 const Prefix& shape, Prompts prompts, const GenerationOptions& options);

// The tokens of all requests of one call, for threads that wait for them. Any thread may use it.
class TokenQueue {
 public:
  // `each_token`: wake the waiting thread at every token, not only at the end.
  explicit TokenQueue(bool each_token) : each_token_(each_token) {}

  // Waits at most `seconds` for something new. Returns whether there is something.
  bool wait(double seconds);

  // Returns the tokens that arrived since the last call.
  std::vector<NewToken> take();

  // Whether every request has ended.
  bool done() const;

  void open();  // counts one more request
  void push(const NewToken* first, size_t count);
  void close();  // counts one request less

  // Calls `listener` after every change from now on, in the computing thread: it must be quick, and not throw.
  void listen(std::function<void()> listener);

 private:
  void changed(bool wake);  // while the mutex is held

  const bool each_token_;
  mutable std::mutex mutex_;
  std::condition_variable change_;
  std::vector<NewToken> added_;
  size_t open_ = 0;
  std::vector<std::function<void()>> listeners_;
};

// The result of a request.
struct Outcome {
  std::vector<Hypothesis> results;  // best first; draws in the order drawn
  int prompt_length = 0;            // positions that were read: past, image, prompt and forced prefix
  int cached_length = 0;            // those of them that came from the prefix cache
  int tokens_chosen = 0;            // length of a text that did not end earlier, a stop token counted
  int answer_cached = 0;            // of a request of one row: tokens of its answer that the pool holds
  bool timed_out = false;           // max_time ended it
  std::exception_ptr failure;

  // Whether max_time ended a text of `tokens` tokens. A text that ended by itself has a stop token, too.
  bool is_cut(int tokens) const { return timed_out && tokens == tokens_chosen; }
};

// A request in a batch, as its caller and the batch see it.
class Ticket {
 public:
  // `queue`: gets the request's tokens; may be null.
  explicit Ticket(Request request, std::shared_ptr<TokenQueue> queue = nullptr);

  // Asks for an early end. The outcome is what exists by then.
  void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

  const Request& request() const { return request_; }
  Clock::time_point deadline() const { return deadline_; }
  bool done() const { return done_.load(std::memory_order_acquire); }
  const Outcome& outcome() const { return outcome_; }  // once done

  // For the batch: hands on tokens; ends the request.
  void push(const NewToken* first, size_t count);
  void end(Outcome outcome);
  void fail(std::exception_ptr failure);

 private:
  const Request request_;
  const std::shared_ptr<TokenQueue> queue_;
  const Clock::time_point deadline_;
  std::atomic<bool> cancelled_{false}, done_{false};
  Outcome outcome_;
};

using Tickets = std::vector<std::shared_ptr<Ticket>>;

}  // namespace blip2rt
