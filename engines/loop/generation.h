// The generation loop. Takes one generation from the prompts to the last stop token, step by step, or from beginning to
// end. Knows which rows of the batch belong to which image; nothing about scores, memory or graphs.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "loop/decoder.h"
#include "loop/generator.h"
#include "search/search.h"
#include "search/search_batch.h"

namespace blip2rt {

class Generation {
 public:
  // Begins to answer one prompt for each image. The first step reads `prefix`. Throws where prompts or options make no
  // sense.
  Generation(const Generator& generator, const Prefix& prefix, Prompts prompts, GenerationOptions options);

  // Begins to answer one prompt behind the `past` positions in row 0 of a decoder that has rows enough.
  // `said`: the tokens of these positions, where options count them.
  Generation(const Generator& generator, std::shared_ptr<Decoder> decoder, const Prefix& prefix, int past,
             std::vector<int64_t> prompt, GenerationOptions options, const std::vector<int64_t>& said);

  Generation(const Generation&) = delete;
  Generation& operator=(const Generation&) = delete;

  // Marks the generation as used by a thread while it lives. Throws where another thread uses it. Whoever shares one
  // between threads holds this around everything below.
  class InUse {
   public:
    explicit InUse(const Generation& generation);
    ~InUse() { generation_.in_use_.clear(std::memory_order_release); }
    InUse(const InUse&) = delete;
    InUse& operator=(const InUse&) = delete;

   private:
    const Generation& generation_;
  };

  // Chooses one token for every running answer. The first step reads the prompts. Does nothing once done().
  void step();
  bool done() const { return done_; }

  // Ends the generation where it is.
  void close() { done_ = true; }

  // The tokens that the last step added; with beams none.
  const std::vector<NewToken>& added() const { return added_; }

  // Returns each image's best sequences. Before done(), returns what there is.
  std::vector<std::vector<Hypothesis>> results() const;

  // Seconds of all steps after the first one, and the part of them within the graphs. The rest is the loop's own.
  struct Spent {
    double steps;
    double graphs;
  };
  Spent spent() const { return spent_; }

  // What row 0 of the cache holds: `positions` of past, prompt, forced prefix and, among these, `in_cache` of the
  // answer's tokens. With beams no row is the answer's, and in_cache is 0.
  struct Kept {
    int positions;
    int in_cache;
  };
  Kept kept() const;

 private:
  // An answer in the making. Number i of the batch owns the rows [i * beams, (i + 1) * beams).
  struct Active {
    size_t image, draw;
    int prompt_length;  // positions of the cache
    std::unique_ptr<Search> search;
  };

  void begin(int past, const std::vector<int64_t>& said);
  void first_step();
  void next_step();
  bool retire(int rows_each);
  void spread_to_beams();
  void advance(int rows_each);

  const Generator& generator_;
  GenerationOptions options_;
  Prefix prefix_;
  Prompts prompts_;
  int past_ = 0;
  std::shared_ptr<Decoder> decoder_;
  std::vector<Active> active_;
  std::vector<NewToken> added_;
  std::vector<std::vector<Hypothesis>> results_;
  std::chrono::steady_clock::time_point deadline_;
  int steps_ = -1;  // tokens of each answer that are in the cache; -1 before the first step
  Spent spent_ = {0, 0};
  bool rebind_ = true;
  std::atomic<bool> done_{false};
  mutable std::atomic_flag in_use_ = ATOMIC_FLAG_INIT;
};

// Generates from beginning to end. Returns each image's best sequences, best first; with sampling in the order drawn.
// Calls `before_step` before every step; what it throws ends the call. Calls `on_token` for every token of greedy
// search and sampling as it comes; where it returns false, the call ends with what there is. Holds no state between
// calls: any number of threads may call it.
std::vector<std::vector<Hypothesis>> generate(const Generator& generator, const Prefix& prefix, const Prompts& prompts,
                                              const GenerationOptions& options,
                                              const std::function<void()>& before_step,
                                              const std::function<bool(const NewToken&)>& on_token);

}  // namespace blip2rt
