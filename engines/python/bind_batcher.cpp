// Submits requests from Python to the batcher, and waits for their results. The batcher's thread takes the GIL for an
// engine in Python only.
#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "loop/batcher.h"
#include "python/bind.h"
#include "python/gil.h"
#include "python/python_loop.h"
#include "python/python_types.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

// The numbers of calls that have made progress, for the thread that notifies their listeners.
class ProgressQueue {
 public:
  void add(uint64_t number) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (std::find(numbers_.begin(), numbers_.end(), number) == numbers_.end()) numbers_.push_back(number);
    change_.notify_all();
  }

  std::vector<uint64_t> wait(double seconds) {
    std::unique_lock<std::mutex> lock(mutex_);
    change_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return !numbers_.empty(); });
    return std::exchange(numbers_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable change_;
  std::vector<uint64_t> numbers_;
};

// The requests of one call. Its destructor cancels what still runs.
class Submitted {
 public:
  Submitted(std::vector<std::shared_ptr<Ticket>> tickets, std::shared_ptr<TokenQueue> queue,
            std::shared_ptr<ProgressQueue> progress)
      : tickets_(std::move(tickets)), queue_(std::move(queue)), progress_(std::move(progress)) {}
  ~Submitted() { cancel(); }
  Submitted(Submitted&&) = default;
  Submitted& operator=(Submitted&&) = delete;

  void cancel() {
    for (const auto& ticket : tickets_) ticket->cancel();
  }

  bool wait(double seconds) const {
    constexpr double kSlice = 0.05;
    const ReleasedGil released;
    const auto end = deadline_after(seconds);
    SignalCheck check;
    for (;;) {
      const std::chrono::duration<double> left = end - Clock::now();
      if (queue_->wait(std::clamp(left.count(), 0.0, kSlice))) return true;
      if (left.count() <= 0) return false;
      check();
    }
  }

  Added take() const { return added_of(queue_->take()); }
  bool done() const { return queue_->done(); }

  Sequences results() const {
    std::vector<std::vector<Hypothesis>> results;
    for (const Outcome* outcome : outcomes()) results.push_back(outcome->results);
    return sequences_of(std::move(results));
  }

  std::vector<std::pair<int, int>> lengths() const {
    std::vector<std::pair<int, int>> lengths;
    for (const Outcome* outcome : outcomes()) lengths.emplace_back(outcome->prompt_length, outcome->cached_length);
    return lengths;
  }

  bool timed_out() const {
    const auto all = outcomes();
    return std::any_of(all.begin(), all.end(), [](const Outcome* outcome) { return outcome->timed_out; });
  }

  bool cut(size_t image, int tokens) const { return outcomes().at(image)->is_cut(tokens); }

  void watch(uint64_t number) {
    queue_->listen([progress = progress_, number] { progress->add(number); });
    progress_->add(number);
  }

 private:
  // Throws if a request has failed, or has not ended.
  std::vector<const Outcome*> outcomes() const {
    std::vector<const Outcome*> all;
    for (const auto& ticket : tickets_) {
      if (!ticket->done()) throw std::runtime_error("the request has not ended: wait for it");
      if (ticket->outcome().failure) std::rethrow_exception(ticket->outcome().failure);
      all.push_back(&ticket->outcome());
    }
    return all;
  }

  std::vector<std::shared_ptr<Ticket>> tickets_;
  std::shared_ptr<TokenQueue> queue_;
  std::shared_ptr<ProgressQueue> progress_;
};

struct PythonBatcher {
  std::unique_ptr<Batcher> batcher;
  std::shared_ptr<ProgressQueue> progress = std::make_shared<ProgressQueue>();

  PythonBatcher(const Generator& generator, const BatchSizes& sizes)
      : batcher(std::make_unique<Batcher>(generator, sizes)) {}
  ~PythonBatcher() {
    if (!batcher->forked()) {
      const ReleasedGil released;  // a step may wait for it
      batcher->close();
      return;
    }
    static_cast<void>(batcher.release());
    static_cast<void>(
        new std::shared_ptr<ProgressQueue>(progress));  // a thread of the other process may be waiting on it
  }
  PythonBatcher(const PythonBatcher&) = delete;
  PythonBatcher& operator=(const PythonBatcher&) = delete;

  Submitted submit(nb::handle prefix_embeds, std::vector<std::vector<int64_t>> prompts, nb::handle given,
                   const std::vector<nb::bytes>& images, bool each_token) {
    const Generator& generator = batcher->generator();
    const Prefix prefix = borrow_prefix(generator, prefix_embeds);
    const GenerationOptions options = options_from(given, static_cast<size_t>(generator.shape().vocab_size));
    if (!images.empty() && images.size() != prompts.size())
      throw std::runtime_error("give a name for every image, or none");
    std::vector<Request> requests =
        requests_of(generator, copied(prefix, generator.shape().hidden_size), prefix, std::move(prompts), options);
    for (size_t i = 0; i < images.size(); ++i) requests[i].cache_key.assign(images[i].c_str(), images[i].size());
    auto queue = std::make_shared<TokenQueue>(each_token);
    return {batcher->submit(std::move(requests), queue), queue, progress};
  }

  nb::dict counters() const {
    const BatchCounters now = batcher->counters();
    nb::dict counters;
    counters["steps"] = now.steps;
    counters["tokens"] = now.tokens;
    counters["requests"] = now.requests;
    counters["waiting"] = now.waiting;
    counters["running"] = now.running;
    counters["rows"] = now.rows;
    counters["positions"] = now.positions;
    counters["hits"] = now.hits;
    counters["misses"] = now.misses;
    counters["kept_positions"] = now.kept_positions;
    counters["kept_bytes"] = now.kept_bytes;
    return counters;
  }
};

}  // namespace

void bind_batcher(nb::module_& m) {
  nb::class_<Submitted>(m, "Submitted")
      .def("wait", &Submitted::wait, "seconds"_a,
           "Wait until all requests have ended or, with each_token, a token has arrived. Return whether that is so.")
      .def("take", &Submitted::take, "Return (image, draw, token id) of each token that settled since the last call.")
      .def("cancel", &Submitted::cancel)
      .def("watch", &Submitted::watch, "number"_a)
      .def("results", &Submitted::results)
      .def("lengths", &Submitted::lengths,
           "Return, for each image, the positions of image and prompt, and how many were cached. Once done.")
      .def_prop_ro("done", &Submitted::done)
      .def("cut", &Submitted::cut, "image"_a, "tokens"_a)
      .def_prop_ro("timed_out", &Submitted::timed_out);

  nb::class_<PythonBatcher>(m, "Batcher")
      .def(
          "__init__",
          [](PythonBatcher* self, const Generator& generator, int rows, int positions, int read, size_t kept_bytes) {
            new (self) PythonBatcher(generator, {rows, positions, read, kept_bytes});
          },
          "generator"_a, "rows"_a, "positions"_a, "read"_a = BatchSizes().read, "kept_bytes"_a = 0,
          nb::keep_alive<1, 2>(),
          "rows, positions: sizes of the pool of keys and values. read: most positions of prompts that a step reads. "
          "kept_bytes: size of the cache of prompt prefixes.")
      .def("submit", &PythonBatcher::submit, "prefix_embeds"_a, "prompts"_a, "options"_a = nb::dict(),
           "images"_a = nb::list(), "each_token"_a = false, nb::keep_alive<0, 1>(),
           "Answer B prompts after prefix_embeds (B, Q, D), as Generator.generate does. Return at once. images: names "
           "of the prefixes in the cache; an empty name is not cached. Raises RuntimeError for bad options, and for "
           "requests that never fit rows and positions.")
      .def(
          "news", [](PythonBatcher& self, double seconds) { return self.progress->wait(seconds); }, WithoutGil(),
          "seconds"_a)
      .def(
          "close", [](PythonBatcher& self) { self.batcher->close(); }, WithoutGil())
      .def_prop_ro("counters", &PythonBatcher::counters,
                   "steps, tokens, requests: totals. waiting, running: requests now. rows, positions: of the pool, in "
                   "use. hits, misses: named images with and without a cached prefix; kept_positions: read from the "
                   "cache; kept_bytes: size of the cache.");
}

}  // namespace blip2rt
