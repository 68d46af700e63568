// Calls and conversations whose requests have a batch to themselves, stepped on the caller's thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "loop/batch.h"
#include "loop/request.h"

namespace blip2rt {

class Generation {
 public:
  // Begins to answer requests in a batch that is exactly as large as they need. `generator` must outlive it. The first
  // step reads the prompts. `later`: requests that join after it, and copy what is read of prompts with the same key.
  Generation(const Generator& generator, std::vector<Request> requests, std::vector<Request> later = {});

  // Begins to answer a request in a batch that is free.
  Generation(const Generator& generator, std::shared_ptr<Batch> batch, Request request);

  // Chooses one token for every running answer. Does nothing once done(). Whoever shares a generation between threads
  // holds a Batch::Lock of batch() around this, added(), results() and times().
  void step();
  bool done() const;

  // Ends the generation. Its results are what exists by then.
  void close() { closed_ = true; }

  // The tokens that the last step settled, see Batch::added().
  const std::vector<NewToken>& added() const { return added_; }

  // Returns each image's best sequences. Before done(), returns what exists.
  std::vector<std::vector<Hypothesis>> results() const;

  // Returns whether max_time ended a text of `tokens` tokens about an image.
  bool is_cut(size_t image, int tokens) const;

  // Seconds of all steps after the first one, and the part of them within the graphs.
  struct Times {
    double steps = 0, graphs = 0;
  };
  const Times& times() const { return times_; }

  Batch& batch() const { return *batch_; }

  // Cancels the request of a generation of one, frees its rows and positions, and returns its outcome.
  Outcome cancel();

 private:
  void add(std::vector<Request> requests);
  void check_failures() const;

  const Generator& generator_;
  std::shared_ptr<Batch> batch_;
  Tickets tickets_;
  std::vector<Request> later_;
  std::vector<NewToken> added_;
  Times times_;
  bool stepped_ = false;
  std::atomic<bool> closed_{false};
};

// Generates from beginning to end. Returns each image's best sequences, best first; draws in the order drawn. Calls
// `before_step` before every step; what it throws ends the call. Calls `on_token` for every token of greedy search and
// sampling; if it returns false, the call ends with what exists.
std::vector<std::vector<Hypothesis>> generate(const Generator& generator, std::vector<Request> requests,
                                              const std::function<void()>& before_step,
                                              const std::function<bool(const NewToken&)>& on_token);

// Generates about the same images and prompts in several ways, which share the reading of the prompts and the steps.
// Returns the best sequences of each image in the first way, then in the next.
std::vector<std::vector<Hypothesis>> generate_rounds(const Generator& generator,
                                                     std::vector<std::vector<Request>> rounds,
                                                     const std::function<void()>& before_step);

// A conversation about one image. What was said stays in the batch's pool, so a question costs only its own tokens.
class Chat {
 public:
  // Copies the prefix (1, length, hidden_size). `max_rows`: the most beams of an answer. `capacity`: positions of
  // image, questions and answers together; their memory is touched as it fills. `generator` must outlive the chat.
  Chat(const Generator& generator, const Prefix& prefix, int max_rows, int capacity);

  // Begins the answer to [image][all that was said][prompt]. Ends the answer before it, and keeps what that has said.
  // Throws if options make no sense or the capacity is used up; then nothing has changed.
  std::shared_ptr<Generation> ask(std::vector<int64_t> prompt, const GenerationOptions& options);

  int positions() const { return past_; }  // of the pool, that hold the conversation

 private:
  void remember();

  const Generator& generator_;
  std::shared_ptr<const float> prefix_;
  int prefix_length_, max_rows_, capacity_;
  std::shared_ptr<Batch> batch_;
  std::shared_ptr<Generation> current_;
  int past_ = 0;
  std::vector<int64_t> pending_;   // tokens that were said, but are not in the pool
  std::vector<int64_t> history_;   // tokens of the `past_` positions
  std::vector<int64_t> question_;  // tokens that the current answer reads
  std::vector<int64_t> image_;     // tokens that stand for the image's positions, if the current answer reads them
};

}  // namespace blip2rt
