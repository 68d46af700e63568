// The decoding loop: a batch of requests that share steps. Requests join between two steps and leave when they end,
// each with its own options. A step decodes one token for every answer, and reads prompts of new requests. Knows which
// rows and positions belong to which request; no threads.
#pragma once

#include <atomic>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "loop/decoder.h"
#include "loop/prefix_store.h"
#include "loop/request.h"
#include "search/search.h"

namespace blip2rt {

struct BatchSizes {
  int rows = 16;               // answers, beams and draws that are decoded together, at most
  int positions = 4096;        // of the pool of keys and values
  int read = 128;              // positions of prompts that one step reads beside the answers, at most; kReadAll: all
  size_t kept_bytes = 0;       // of the prefix cache
  int min_positions = 0;       // of the pool that every request gets, so that prompts of unequal length share a run
  int encoder_rows = 1;        // prompts whose encoder output has a row of its own, see DecoderSizes
  int encoder_positions = -1;  // of such a row; -1: as many as `positions`
};

constexpr int kReadAll = INT_MAX;  // only for batches whose requests all start together

// Totals so far, and the current state.
struct BatchCounters {
  uint64_t steps = 0, tokens = 0, requests = 0;  // computed, chosen, ended
  uint64_t hits = 0, misses = 0;                 // requests with a cache key that did, and did not, find a prefix
  uint64_t kept_positions = 0;                   // that came from the prefix cache
  size_t kept_bytes = 0;
  int waiting = 0, running = 0, rows = 0, positions = 0;
};

class Batch {
 public:
  // `generator` must outlive the batch.
  Batch(const Generator& generator, const BatchSizes& sizes);
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  // Marks the batch as used by a thread. Throws if another thread uses it.
  class Lock {
   public:
    explicit Lock(Batch& batch);
    ~Lock() { batch_.locked_.clear(std::memory_order_release); }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;

   private:
    Batch& batch_;
  };

  // Throws if a request could never run, because it needs more rows or positions than there are.
  void check(const Request& request) const;

  // Queues a request until rows and positions are free. First come, first served.
  void add(std::shared_ptr<Ticket> ticket) { waiting_.push_back(std::move(ticket)); }

  // Ends requests that were cancelled, then admits waiting ones. step() does so, too.
  void admit();

  // Takes a step. A failure of one request ends that request; a failure of the graphs ends all that took part.
  void step();

  bool idle() const { return waiting_.empty() && running_.empty(); }

  // The tokens that the last step settled. With beams, those that all beams agree on, and the rest at the end; none if
  // several beams are returned.
  const std::vector<NewToken>& added() const { return added_; }

  // Returns what exists of a request: its outcome, once it is done.
  Outcome outcome_of(const Ticket& ticket) const;

  // Ends all requests with a failure.
  void fail_all(const std::exception_ptr& failure);

  double graph_seconds() const { return decoder_->graph_seconds(); }
  BatchCounters counters() const;

 private:
  struct Answer {
    size_t draw;
    std::unique_ptr<Search> search;
    int told = 0;  // tokens that were added_
  };

  // An admitted request. Its positions of the pool: the prompt, then max_new_tokens for each row.
  struct Running {
    std::shared_ptr<Ticket> ticket;
    std::vector<int64_t> tokens;  // to read behind the prefix
    int prefix_length;            // of what the decoder reads: 0 with an encoder
    int start, count, encoder_start, encoder_count;
    bool encoded = false;
    int read = 0, cached = 0;  // positions that are read, and that came from the prefix cache
    int span = 0;              // positions that this step reads
    int fed = -1;              // tokens of each answer that are in the pool; -1 before the first is chosen
    int first_row = -1;        // of the run, if the request takes part
    int last_row = -1;
    bool ended = false;
    std::vector<Answer> answers;                    // unfinished ones
    std::vector<std::vector<Hypothesis>> finished;  // for each draw
    bool timed_out = false;

    const Request& request() const { return ticket->request(); }
    const GenerationOptions& options() const { return request().options; }
    int prompt_length() const { return request().past + prefix_length + static_cast<int>(tokens.size()); }
  };

  int positions_of(const Request& request, int& prompt_length) const;
  void drop_cancelled();
  bool admit(const std::shared_ptr<Ticket>& ticket);
  void begin(Running& one);
  void load_prefix(Running& one);
  void encode();
  bool choose_readers();
  PromptSpan span_of(const Running& one) const;
  int answer_start(const Running& one, int row) const;
  Context context_of(const Running& one, int row, int before) const;
  void read_spans();
  void read_each();
  void run_rows();
  void add_answers(Running& one);
  void add_span(Running& one);
  void advance(Running& one);
  void choose_first(Running& one, bool last);
  void choose_next(Running& one, bool last);
  void choose(Running& one, Answer& answer, float* scores, int rows, bool last);
  void save_prefix(const Running& one, const std::vector<int64_t>& answer);
  Outcome outcome_of(const Running& one) const;
  void finish(Running& one, const std::exception_ptr& failure = nullptr);
  void release(Running& one);
  void drop_ended();

  const Generator& generator_;
  const BatchSizes sizes_;
  const std::shared_ptr<Decoder> decoder_;
  Positions pool_, encoder_pool_;
  PrefixStore store_;
  std::deque<std::shared_ptr<Ticket>> waiting_;
  std::deque<Running> running_;    // in the order of arrival
  std::vector<Running*> readers_;  // whose prompts this step reads
  int rows_ = 0;                   // that the running requests may need
  std::vector<float> scores_;      // (vocab_size), of a draw that is not the last of its image
  std::vector<NewToken> added_;
  BatchCounters counters_;
  std::atomic_flag locked_ = ATOMIC_FLAG_INIT;
};

}  // namespace blip2rt
