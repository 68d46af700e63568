// Admits requests to the batch and ends them. batch_step.cpp takes the steps.
#include "loop/batch.h"

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "loop/row_decoder.h"

namespace blip2rt {
namespace {

constexpr int64_t kImagePosition = -1;  // a position of the prefix, among tokens

// Checks sizes. An engine that has a cache for each row gives every one its capacity, for as many rows as it has.
BatchSizes checked(const Generator& generator, BatchSizes sizes) {
  if (sizes.rows < 1 || sizes.read < 1 || sizes.positions < 1) {
    throw std::runtime_error("rows, read and positions must be at least 1");
  }
  const RowShape& rows = generator.rows();
  if (rows.rows == 0) return sizes;
  sizes.rows = std::min(sizes.rows, rows.rows);
  if (__builtin_mul_overflow(sizes.rows, rows.capacity, &sizes.positions)) throw std::bad_alloc();
  sizes.encoder_rows = sizes.rows;
  sizes.encoder_positions = 0;
  return sizes;
}

// Prompts are read by steps of their own in a batch whose requests start together, and beside answers otherwise.
DecoderSizes decoder_sizes(const Generator& generator, const BatchSizes& sizes) {
  const bool encodes = generator.encoder() != nullptr;
  const int encoder_positions = sizes.encoder_positions < 0 ? sizes.positions : sizes.encoder_positions;
  return {sizes.read == kReadAll ? sizes.rows : sizes.rows + sizes.read, sizes.rows, sizes.positions,
          sizes.encoder_rows, encodes ? encoder_positions : 0};
}

// A decoder that no other batch uses. A RowDecoder is used again by later batches, unless a run of it has failed.
std::shared_ptr<Decoder> make_decoder(const Generator& generator, const DecoderSizes& sizes) {
  if (generator.rows().rows == 0) return std::make_shared<PoolDecoder>(generator, sizes);
  std::shared_ptr<RowDecoder> decoder = std::static_pointer_cast<RowDecoder>(generator.take_idle());
  if (decoder == nullptr) decoder = std::make_shared<RowDecoder>(generator);
  decoder->clear();
  RowDecoder* lent = decoder.get();
  return {lent, [&generator, decoder](RowDecoder* used) {
            if (!used->failed()) generator.give_back(decoder);
          }};
}

int encoder_pool_size(const DecoderSizes& sizes) {
  int size = 0;
  if (__builtin_mul_overflow(sizes.encoder_rows, sizes.encoder_positions, &size)) throw std::bad_alloc();
  return size;
}

int encoder_length_of(const Request& request) {
  return request.prefix_length + static_cast<int>(request.prompt.size());
}

}  // namespace

Batch::Batch(const Generator& generator, const BatchSizes& sizes)
    : generator_(generator),
      sizes_(checked(generator, sizes)),
      decoder_(make_decoder(generator, decoder_sizes(generator, sizes_))),
      pool_(sizes_.positions, sizes_.rows),
      encoder_pool_(encoder_pool_size(decoder_sizes(generator, sizes_)), sizes_.rows),
      store_(decoder_->cache(), generator.reuses_prefixes() ? sizes.kept_bytes : 0) {
  readers_.reserve(static_cast<size_t>(sizes_.rows));
  added_.reserve(static_cast<size_t>(sizes_.positions));  // more cannot settle in a step
}

Batch::Lock::Lock(Batch& batch) : batch_(batch) {
  if (batch.locked_.test_and_set(std::memory_order_acquire)) {
    throw std::runtime_error("this generation is being stepped already: one thread at a time");
  }
}

// Returns the positions that a request needs, and how many of them its prompt has.
int Batch::positions_of(const Request& request, int& prompt_length) const {
  const GenerationOptions& options = request.options;
  const bool encodes = generator_.encoder() != nullptr;
  const size_t read = static_cast<size_t>(request.past) + options.forced_prefix.size() +
                      (encodes ? 1 : static_cast<size_t>(request.prefix_length) + request.prompt.size());
  const bool has_rows = generator_.rows().rows > 0;
  const int most = has_rows ? generator_.rows().capacity : sizes_.positions;
  size_t all = read + product_of(has_rows ? 1 : options.rows_each(), options.max_new_tokens);
  if (has_rows && encodes) all = std::max(all, static_cast<size_t>(encoder_length_of(request)));
  if (all > static_cast<size_t>(most)) {
    throw std::runtime_error("the request needs " + std::to_string(all) +
                             " positions of keys and values, and there are " + std::to_string(most) +
                             (has_rows ? ": build plans with that capacity, or ask for fewer new tokens" : ""));
  }
  prompt_length = static_cast<int>(read);
  return has_rows ? options.rows_each() * most : std::max(static_cast<int>(all), sizes_.min_positions);
}

void Batch::check(const Request& request) const {
  if (request.options.rows_each() > sizes_.rows) {
    throw std::runtime_error("the request needs " + std::to_string(request.options.rows_each()) +
                             " rows, and there are " + std::to_string(sizes_.rows) +
                             (generator_.rows().rows > 0 ? ": build plans with more beams" : ""));
  }
  int prompt_length = 0;
  positions_of(request, prompt_length);
  const bool shares_pool = generator_.encoder() != nullptr && generator_.rows().rows == 0;
  if (shares_pool && encoder_length_of(request) > encoder_pool_.capacity()) {
    throw std::runtime_error("image and prompt have more positions than the " + std::to_string(sizes_.positions) +
                             " that there are");
  }
}

void Batch::admit() {
  drop_cancelled();
  while (!waiting_.empty() && admit(waiting_.front())) waiting_.pop_front();
  drop_ended();
}

void Batch::drop_cancelled() {
  for (Running& one : running_) {
    if (one.ticket->cancelled()) finish(one);
  }
  drop_ended();
  for (auto ticket = waiting_.begin(); ticket != waiting_.end();) {
    if (!(*ticket)->cancelled()) {
      ++ticket;
      continue;
    }
    (*ticket)->end(outcome_of(**ticket));
    ++counters_.requests;
    ticket = waiting_.erase(ticket);
  }
}

// Admits a request if rows and positions are free. Returns false if it has to wait.
bool Batch::admit(const std::shared_ptr<Ticket>& ticket) {
  const Request& request = ticket->request();
  const int rows = request.options.rows_each();
  if (rows_ + rows > sizes_.rows) return false;
  int prompt_length = 0;
  const int count = positions_of(request, prompt_length);
  const bool encodes = generator_.encoder() != nullptr;
  const int encoder_count = !encodes                  ? 0
                            : sizes_.encoder_rows > 1 ? sizes_.encoder_positions
                                                      : encoder_length_of(request);
  Running& one = running_.emplace_back();
  const auto start = pool_.take(count);
  const auto encoder_start = start ? encoder_pool_.take(encoder_count) : std::nullopt;
  if (!encoder_start) {
    if (start) pool_.give_back(*start, count);
    running_.pop_back();
    return false;
  }
  rows_ += rows;
  one.ticket = ticket;
  one.prefix_length = encodes ? 0 : request.prefix_length;
  one.start = *start;
  one.count = count;
  one.encoder_start = *encoder_start;
  one.encoder_count = encoder_count;
  one.encoded = !encodes;
  try {
    begin(one);
  } catch (...) {
    finish(one, std::current_exception());
  }
  return true;
}

void Batch::begin(Running& one) {
  const Request& request = one.request();
  const GenerationOptions& options = request.options;
  std::vector<int64_t> given = options.forced_prefix, history;
  if (generator_.encoder() != nullptr) {
    given.insert(given.begin(), generator_.decoder_start_token_id());
    one.tokens = given;
  } else {
    one.tokens = request.prompt;
    one.tokens.insert(one.tokens.end(), given.begin(), given.end());
    if (options.counts_prompt) {
      history = request.history;
      options.append_image(history, static_cast<size_t>(request.prefix_length));
      history.insert(history.end(), request.prompt.begin(), request.prompt.end());
    }
  }
  history.insert(history.end(), given.begin(), given.end());
  const size_t draws = options.draws_independently() ? static_cast<size_t>(options.num_return_sequences) : 1;
  one.read = request.past;
  one.finished.resize(draws);
  const auto vocab_size = static_cast<size_t>(generator_.shape().vocab_size);
  for (size_t draw = 0; draw < draws; ++draw) {
    const Random random(options.seed, options.first_image, draw);
    one.answers.push_back({draw, std::make_unique<Search>(options, vocab_size, history, random)});
  }
  load_prefix(one);
}

// Copies what the prefix cache has of a new request's prompt, except for the last position, whose logits are needed.
void Batch::load_prefix(Running& one) {
  const Request& request = one.request();
  if (request.cache_key.empty() || !generator_.reuses_prefixes()) return;
  std::vector<int64_t> known(static_cast<size_t>(one.prefix_length), kImagePosition);
  known.insert(known.end(), one.tokens.begin(), one.tokens.end());
  one.cached = one.read = store_.load(request.cache_key, known, one.start, one.prompt_length() - 1);
  ++(one.cached > 0 ? counters_.hits : counters_.misses);
  counters_.kept_positions += static_cast<uint64_t>(one.cached);
}

// Adds a request's prompt to the prefix cache, and the part of its answer that is in the pool.
void Batch::save_prefix(const Running& one, const std::vector<int64_t>& answer) {
  const std::string& key = one.request().cache_key;
  if (key.empty() || !generator_.reuses_prefixes()) return;
  std::vector<int64_t> known(static_cast<size_t>(one.prefix_length), kImagePosition);
  known.insert(known.end(), one.tokens.begin(), one.tokens.end());
  const auto fed = static_cast<ptrdiff_t>(std::min(answer.size(), static_cast<size_t>(std::max(0, one.fed))));
  known.insert(known.end(), answer.begin(), answer.begin() + fed);
  try {
    store_.save(key, known, one.start);
  } catch (const std::bad_alloc&) {  // the request itself does not need it
  }
}

Outcome Batch::outcome_of(const Running& one) const {
  Outcome outcome;
  std::vector<std::vector<Hypothesis>> draws = one.finished;
  for (const Answer& answer : one.answers) draws[answer.draw] = answer.search->results();
  for (std::vector<Hypothesis>& draw : draws) {
    if (one.options().draws_independently() && draw.size() > 1) draw.resize(1);
    std::move(draw.begin(), draw.end(), std::back_inserter(outcome.results));
  }
  outcome.prompt_length = one.prompt_length();
  outcome.cached_length = one.cached;
  outcome.tokens_chosen = one.fed + 1;
  if (one.options().rows_each() == 1 && one.fed > 0) {
    outcome.answer_cached = std::min(one.fed, static_cast<int>(outcome.results.front().tokens.size()));
  }
  outcome.timed_out = one.timed_out;
  return outcome;
}

Outcome Batch::outcome_of(const Ticket& ticket) const {
  if (ticket.done()) return ticket.outcome();
  for (const Running& one : running_) {
    if (one.ticket.get() == &ticket) return outcome_of(one);
  }
  const GenerationOptions& options = ticket.request().options;
  Outcome outcome;
  outcome.results.resize(options.draws_independently() ? static_cast<size_t>(options.num_return_sequences) : 1);
  return outcome;
}

// Ends a request with what exists of it.
void Batch::finish(Running& one, const std::exception_ptr& failure) {
  if (one.ended) return;
  if (failure) decoder_->forget(one.start, one.options().rows_each());
  try {
    Outcome outcome = outcome_of(one);
    outcome.failure = failure;
    if (!failure && one.options().rows_each() == 1 && one.fed > 0) save_prefix(one, outcome.results.front().tokens);
    release(one);
    one.ticket->end(std::move(outcome));
  } catch (...) {  // out of memory
    release(one);
    one.ticket->fail(failure ? failure : std::current_exception());
  }
}

void Batch::release(Running& one) {
  if (one.ended) return;
  pool_.give_back(one.start, one.count);
  encoder_pool_.give_back(one.encoder_start, one.encoder_count);
  rows_ -= one.options().rows_each();
  one.first_row = -1;
  one.ended = true;
  ++counters_.requests;
}

void Batch::drop_ended() {
  const auto ended = [](const Running& one) { return one.ended; };
  running_.erase(std::remove_if(running_.begin(), running_.end(), ended), running_.end());
}

void Batch::fail_all(const std::exception_ptr& failure) {
  for (Running& one : running_) finish(one, failure);
  drop_ended();
  for (const auto& ticket : waiting_) ticket->fail(failure);
  waiting_.clear();
}

BatchCounters Batch::counters() const {
  BatchCounters now = counters_;
  now.kept_bytes = store_.bytes();
  now.waiting = static_cast<int>(waiting_.size());
  now.running = static_cast<int>(running_.size());
  now.rows = rows_;
  now.positions = pool_.taken();
  return now;
}

}  // namespace blip2rt
