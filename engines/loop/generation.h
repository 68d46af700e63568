// A call whose requests have a batch to themselves, stepped on the caller's thread.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "loop/batch.h"
#include "loop/request.h"

namespace blip2rt {

class Generation {
 public:
  // Begins to answer requests in a batch that is exactly as large as they need. `generator` must outlive it. The first
  // step reads the prompts.
  Generation(const Generator& generator, std::vector<Request> requests);

  // Begins to answer a request in a batch that is free.
  Generation(const Generator& generator, std::shared_ptr<Batch> batch, Request request);

  // Chooses one token for every running answer. Does nothing once done(). Whoever shares a generation between threads
  // holds a Batch::Lock of batch() around this, added(), results() and times().
  void step();
  bool done() const;

  // Ends the generation. Its results are what exists by then.
  void close() { closed_ = true; }

  // The tokens that the last step added; none with beams.
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

}  // namespace blip2rt
