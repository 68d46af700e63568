// Sizes a batch for one call, and steps it. Keeps the pool of a conversation in step with what was said.
#include "loop/generation.h"

#include <algorithm>
#include <cstdint>
#include <exception>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

namespace blip2rt {
namespace {

int checked_sum(int64_t sum) {
  if (sum > INT32_MAX) throw std::bad_alloc();
  return static_cast<int>(sum);
}

// Returns the sizes that these requests need when they all start together, with prompts padded to the longest, and
// `later` ones join them.
BatchSizes sizes_of(const Generator& generator, const std::vector<Request>& requests,
                    const std::vector<Request>& later) {
  const bool encodes = generator.encoder() != nullptr;
  int64_t rows = 0, positions = 0, longest = 0, encoder_positions = 1;
  const auto prompt_of = [encodes](const Request& one) {
    const auto length = static_cast<int64_t>(one.prefix_length) + static_cast<int64_t>(one.prompt.size());
    return static_cast<int64_t>(one.options.forced_prefix.size()) + (encodes ? 1 : length);
  };
  for (const auto* all : {&requests, &later}) {
    for (const Request& one : *all) longest = std::max(longest, prompt_of(one));
  }
  for (const auto* all : {&requests, &later}) {
    for (const Request& one : *all) {
      const int64_t each = one.options.rows_each();
      rows += each;
      positions += std::max(longest, prompt_of(one) + each * one.options.max_new_tokens);
      const int64_t encoded = static_cast<int64_t>(one.prefix_length) + static_cast<int64_t>(one.prompt.size());
      encoder_positions = std::max(encoder_positions, encoded);
    }
  }
  BatchSizes sizes;
  sizes.rows = checked_sum(std::max<int64_t>(1, rows));
  sizes.positions = checked_sum(std::max<int64_t>(1, positions));
  sizes.read = kReadAll;
  sizes.kept_bytes = later.empty() ? 0 : SIZE_MAX;
  sizes.min_positions = checked_sum(longest);
  sizes.encoder_rows = std::max(1, static_cast<int>(requests.size()));
  sizes.encoder_positions = checked_sum(encoder_positions);
  return sizes;
}

}  // namespace

Generation::Generation(const Generator& generator, std::vector<Request> requests, std::vector<Request> later)
    : generator_(generator),
      batch_(std::make_shared<Batch>(generator, sizes_of(generator, requests, later))),
      later_(std::move(later)) {
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
  size_t tokens = added_.capacity();
  const size_t first = tickets_.size();
  for (Request& request : requests) {
    tokens += static_cast<size_t>(request.options.rows_each()) * static_cast<size_t>(request.options.max_new_tokens);
    tickets_.push_back(std::make_shared<Ticket>(std::move(request)));
  }
  added_.reserve(tokens);
  try {
    for (size_t i = first; i < tickets_.size(); ++i) batch_->check(tickets_[i]->request());
    for (size_t i = first; i < tickets_.size(); ++i) batch_->add(tickets_[i]);
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
  return closed_ || (later_.empty() &&
                     std::all_of(tickets_.begin(), tickets_.end(), [](const auto& ticket) { return ticket->done(); }));
}

void Generation::step() {
  generator_.llm().check_process();
  added_.clear();
  if (done()) return;
  if (stepped_ && !later_.empty()) add(std::exchange(later_, {}));
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

std::vector<std::vector<Hypothesis>> generate_rounds(const Generator& generator,
                                                     std::vector<std::vector<Request>> rounds,
                                                     const std::function<void()>& before_step) {
  std::vector<std::vector<Hypothesis>> found;
  std::vector<Request> later;
  for (size_t i = 1; generator.reuses_prefixes() && i < rounds.size(); ++i) {
    std::move(rounds[i].begin(), rounds[i].end(), std::back_inserter(later));
  }
  if (!later.empty()) rounds.resize(1);
  for (std::vector<Request>& round : rounds) {
    for (auto* all : {&round, &later}) {
      for (Request& one : *all) one.cache_key = std::to_string(one.number);
    }
    Generation generation(generator, std::move(round), std::move(later));
    while (!generation.done()) {
      before_step();
      generation.step();
    }
    auto results = generation.results();
    std::move(results.begin(), results.end(), std::back_inserter(found));
  }
  return found;
}

Chat::Chat(const Generator& generator, const Prefix& prefix, int max_rows, int capacity)
    : generator_(generator), prefix_length_(prefix.length), max_rows_(max_rows), capacity_(capacity) {
  if (generator.encoder() != nullptr) {
    throw std::runtime_error("an encoder-decoder keeps no conversation: ask with the whole history instead");
  }
  if (prefix.images != 1) {
    throw std::runtime_error("a chat is about 1 image, not " + std::to_string(prefix.images));
  }
  if (max_rows < 1 || capacity < 1) throw std::runtime_error("max_rows and capacity must be at least 1");
  if (const RowShape& rows = generator.rows(); rows.rows > 0) {
    max_rows_ = max_rows = std::min(max_rows, rows.rows);
    capacity_ = capacity = std::min(capacity, rows.capacity);
  }
  prefix_ = copied(prefix, generator.shape().hidden_size);
  BatchSizes sizes;
  sizes.rows = max_rows;
  sizes.read = kReadAll;
  // Beams share the conversation, but each may say as much as there is room for.
  if (__builtin_mul_overflow(max_rows, capacity, &sizes.positions)) throw std::bad_alloc();
  batch_ = std::make_shared<Batch>(generator, sizes);
}

std::shared_ptr<Generation> Chat::ask(std::vector<int64_t> prompt, const GenerationOptions& options) {
  generator_.llm().check_process();
  const Batch::Lock lock(*batch_);
  remember();
  prompt.insert(prompt.begin(), pending_.begin(), pending_.end());
  if (options.rows_each() > max_rows_) {
    throw std::runtime_error("num_beams is " + std::to_string(options.rows_each()) + ", more than the chat's " +
                             std::to_string(max_rows_));
  }
  const Prefix prefix{prefix_.get(), 1, past_ == 0 ? prefix_length_ : 0};
  const size_t needed =
      static_cast<size_t>(prefix.length) + prompt.size() + options.forced_prefix.size() + options.max_new_tokens;
  if (static_cast<size_t>(past_) + needed > static_cast<size_t>(capacity_)) {
    throw std::runtime_error("the chat is full: " + std::to_string(past_) + " of its " + std::to_string(capacity_) +
                             " positions are used, and this needs " + std::to_string(needed) + " more");
  }
  std::vector<int64_t> question = prompt, image;
  question.insert(question.end(), options.forced_prefix.begin(), options.forced_prefix.end());
  options.append_image(image, static_cast<size_t>(prefix.length));
  Request request = std::move(requests_of(generator_, prefix_, prefix, {std::move(prompt)}, options).front());
  request.past = past_;
  request.history = history_;
  current_ = std::make_shared<Generation>(generator_, batch_, std::move(request));
  question_ = std::move(question);
  image_ = std::move(image);
  return current_;
}

// Keeps what the current answer has read and said. An answer that was never stepped leaves nothing.
void Chat::remember() {
  if (current_ == nullptr) return;
  const Outcome outcome = current_->cancel();
  current_ = nullptr;
  if (outcome.tokens_chosen == 0 || outcome.results.empty()) return;
  const std::vector<int64_t>& answer = outcome.results.front().tokens;
  const auto cached = answer.begin() + outcome.answer_cached;
  pending_.assign(cached, answer.end());
  for (const auto* said : {&image_, &question_}) history_.insert(history_.end(), said->begin(), said->end());
  history_.insert(history_.end(), answer.begin(), cached);
  past_ = outcome.prompt_length + outcome.answer_cached;
}

}  // namespace blip2rt
