// The running batch: requests join it between any two steps and leave when they end, each with its own options. A step
// feeds one token to every answer, and reads some of the prompts of those that have come. Knows which rows and
// positions are whose; nothing about threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "loop/positions.h"
#include "loop/prefix_store.h"
#include "loop/request.h"
#include "loop/row_decoder.h"
#include "search/search.h"

namespace blip2rt {

struct BatchSizes {
  int rows = 16;          // answers, beams and draws that are decoded together, at most
  int positions = 4096;   // of the pool of keys and values
  int read = 128;         // positions of prompts that a step reads beside the answers, at most
  size_t kept_bytes = 0;  // of keys and values that are kept for later requests
};

// What a batch has done, and has now.
struct BatchCounters {
  uint64_t steps = 0, tokens = 0, requests = 0;  // that were computed, chosen, ended
  uint64_t hits = 0, misses = 0;  // requests with an image's name that were, and were not, read in part before
  uint64_t kept_positions = 0;    // which were not read again
  size_t kept_bytes = 0;
  int waiting = 0, running = 0, rows = 0, positions = 0;
};

class Batch {
 public:
  // `generator` must outlive the batch.
  Batch(const Generator& generator, const BatchSizes& sizes);

  // Throws where a request could never run: wrong options, or more rows or positions than there are.
  void check(const Request& request) const;

  // Takes a request, which waits until rows and positions are free. First come, first served.
  void add(std::shared_ptr<Ticket> ticket) { waiting_.push_back(std::move(ticket)); }

  // Lets requests go that nobody wants any more, lets others in, and takes a step. What fails with one request ends
  // that one alone; where the graphs fail, all that took part in the step.
  void step();

  bool idle() const { return waiting_.empty() && running_.empty(); }

  // Ends all requests with a failure.
  void fail_all(const std::exception_ptr& failure);

  BatchCounters counters() const;

 private:
  struct Answer {
    size_t draw;
    std::unique_ptr<Search> search;
  };

  // A request in the batch. Its positions of the pool: what it reads, and behind that for each row max_new_tokens.
  struct Running {
    std::shared_ptr<Ticket> ticket;
    std::vector<int64_t> tokens;  // that are read behind the prefix
    int prefix_length;            // of what the decoder reads: 0 with an encoder
    int start, count, cross_start, cross_length;
    int read = 0, kept = 0;  // positions that are read, and that were kept
    int fed = -1;            // tokens of each answer that are fed; -1 before the first is chosen
    int first_row = -1;      // of the run, where it takes part
    int last_row = -1;
    bool ended = false;
    std::vector<Answer> answers;  // those that go on
    std::vector<std::vector<Hypothesis>> ended_draws;
    bool timed_out = false;

    const GenerationOptions& options() const { return ticket->request().options; }
    int prompt_length() const { return prefix_length + static_cast<int>(tokens.size()); }
  };

  int positions_of(const Request& request, int& prompt_length) const;
  void let_go();
  bool let_in(const std::shared_ptr<Ticket>& ticket);
  void begin(Running& one);
  Seen seen_of(const Running& one, int row, int before) const;
  const Running* newcomer() const;
  void feed(Running& one);
  void read(Running& one, int most);
  void advance(Running& one, bool in_order);
  void choose_first(Running& one, int row, bool last);
  void choose_next(Running& one, bool last);
  void choose(Running& one, Answer& answer, float* scores, int rows, bool last);
  void keep(const Running& one, const std::vector<int64_t>& said);
  void finish(Running& one);
  void release(Running& one);
  void drop_ended();

  const Generator& generator_;
  const BatchSizes sizes_;
  RowDecoder decoder_;
  Positions pool_, cross_pool_;
  PrefixStore store_;
  std::deque<std::shared_ptr<Ticket>> waiting_;
  std::deque<Running> running_;  // in the order in which they came
  int rows_ = 0;                 // that the running ones may need
  std::vector<float> scores_;    // (vocab_size), of a draw that is not the last of its image
  std::vector<NewToken> added_;
  BatchCounters counters_;
};

}  // namespace blip2rt
