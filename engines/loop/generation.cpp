// Sizes a batch for one call, and steps it.
#include "loop/generation.h"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <new>
#include <utility>

namespace blip2rt {
namespace {

int checked_sum(int64_t sum) {
  if (sum > INT32_MAX) throw std::bad_alloc();
  return static_cast<int>(sum);
}

// Returns the sizes that these requests need when they all start together, with prompts padded to the longest.
BatchSizes sizes_of(const Generator& generator, const std::vector<Request>& requests) {
  const bool encodes = generator.encoder() != nullptr;
  int64_t rows = 0, positions = 0, longest = 0, encoder_positions = 1;
  const auto prompt_of = [encodes](const Request& one) {
    const auto length = static_cast<int64_t>(one.prefix_length) + static_cast<int64_t>(one.prompt.size());
    return static_cast<int64_t>(one.options.forced_prefix.size()) + (encodes ? 1 : length);
  };
  for (const Request& one : requests) longest = std::max(longest, prompt_of(one));
  for (const Request& one : requests) {
    const int64_t each = one.options.rows_each();
    rows += each;
    positions += std::max(longest, prompt_of(one) + each * one.options.max_new_tokens);
    encoder_positions =
        std::max(encoder_positions, static_cast<int64_t>(one.prefix_length) + static_cast<int64_t>(one.prompt.size()));
  }
  BatchSizes sizes;
  sizes.rows = checked_sum(std::max<int64_t>(1, rows));
  sizes.positions = checked_sum(std::max<int64_t>(1, positions));
  sizes.read = kReadAll;
  sizes.min_positions = checked_sum(longest);
  sizes.encoder_rows = std::max(1, static_cast<int>(requests.size()));
  sizes.encoder_positions = checked_sum(encoder_positions);
  return sizes;
}

}  // namespace

Generation::Generation(const Generator& generator, std::vector<Request> requests)
    : generator_(generator), batch_(std::make_shared<Batch>(generator, sizes_of(generator, requests))) {
  add(std::move(requests));
}

Generation::Generation(const Generator& generator, std::shared_ptr<Batch> batch, Request request)
    : generator_(generator), batch_(std::move(batch)) {
  std::vector<Request> requests;
  requests.push_back(std::move(request));
  add(std::move(requests));
}

void Generation::add(std::vector<Request> requests) {
  generator_.llm().check_process();
  size_t rows = 0;
  for (Request& request : requests) {
    rows += static_cast<size_t>(request.options.rows_each());
    tickets_.push_back(std::make_shared<Ticket>(std::move(request)));
  }
  added_.reserve(rows);
  try {
    for (const auto& ticket : tickets_) batch_->add(ticket);
    batch_->admit();
    check_failures();
  } catch (...) {  // the batch may be a chat's
    for (const auto& ticket : tickets_) ticket->cancel();
    batch_->admit();
    throw;
  }
}

void Generation::check_failures() const {
  for (const auto& ticket : tickets_) {
    if (ticket->done() && ticket->outcome().failure) std::rethrow_exception(ticket->outcome().failure);
  }
}

bool Generation::done() const {
  return closed_ || std::all_of(tickets_.begin(), tickets_.end(), [](const auto& ticket) { return ticket->done(); });
}

void Generation::step() {
  generator_.llm().check_process();
  added_.clear();
  if (done()) return;
  const auto start = Clock::now();
  const double graphs = batch_->graph_seconds();
  try {
    batch_->step();
    check_failures();
  } catch (...) {
    closed_ = true;  // nothing can follow half a step
    throw;
  }
  added_ = batch_->added();
  if (stepped_) {
    times_.graphs += batch_->graph_seconds() - graphs;
    times_.steps += std::chrono::duration<double>(Clock::now() - start).count();
  }
  stepped_ = true;
}

std::vector<std::vector<Hypothesis>> Generation::results() const {
  std::vector<std::vector<Hypothesis>> results;
  for (const auto& ticket : tickets_) results.push_back(batch_->outcome_of(*ticket).results);
  return results;
}

bool Generation::is_cut(size_t image, int tokens) const {
  return batch_->outcome_of(*tickets_.at(image)).is_cut(tokens);
}

Outcome Generation::cancel() {
  close();
  tickets_.front()->cancel();
  batch_->admit();
  return tickets_.front()->outcome();
}

std::vector<std::vector<Hypothesis>> generate(const Generator& generator, std::vector<Request> requests,
                                              const std::function<void()>& before_step,
                                              const std::function<bool(const NewToken&)>& on_token) {
  Generation generation(generator, std::move(requests));
  while (!generation.done()) {
    before_step();
    generation.step();
    if (!on_token) continue;
    for (const NewToken& token : generation.added()) {
      if (!on_token(token)) return generation.results();
    }
  }
  return generation.results();
}

}  // namespace blip2rt
