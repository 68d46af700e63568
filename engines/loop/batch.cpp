// Steps the running batch. Reads top to bottom as a step goes. Knows rows, positions and requests.
#include "loop/batch.h"

#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "ort/active_call.h"

namespace blip2rt {
namespace {

constexpr int64_t kOfImage = -1;  // a position of the prefix, among tokens

int rows_of(const GenerationOptions& options) { return options.rows_each(); }

const BatchSizes& checked(const BatchSizes& sizes) {
  constexpr int kMost = 1 << 16;  // rows; far beyond use
  const bool fits =
      sizes.rows >= 1 && sizes.rows <= kMost && sizes.read >= 1 && sizes.read <= kMost && sizes.positions >= 1;
  if (!fits) throw std::runtime_error("rows and read must be 1 to 65536, and positions at least 1");
  return sizes;
}

// Returns whether a prompt's first positions are the same whatever comes behind them, and lie in the decoder's cache.
bool keeps_prefixes(const Generator& generator) {
  return generator.encoder() == nullptr && !generator.shape().bidirectional_prompt;
}

}  // namespace

Batch::Batch(const Generator& generator, const BatchSizes& sizes)
    : generator_(generator),
      sizes_(checked(sizes)),
      decoder_(generator, sizes.rows + sizes.read, sizes.positions, true),
      pool_(sizes.positions),
      cross_pool_(generator.encoder() == nullptr ? 0 : sizes.positions),
      store_(decoder_.cache(), keeps_prefixes(generator) ? sizes.kept_bytes : 0),
      scores_(static_cast<size_t>(generator.shape().vocab_size)) {}

// Returns the positions that a request needs, and how many of them its prompt has.
int Batch::positions_of(const Request& request, int& prompt_length) const {
  const GenerationOptions& options = request.options;
  const bool encodes = generator_.encoder() != nullptr;
  const size_t read =
      options.forced_prefix.size() + (encodes ? 1 : static_cast<size_t>(request.prefix_length) + request.prompt.size());
  const size_t all = read + static_cast<size_t>(rows_of(options)) * static_cast<size_t>(options.max_new_tokens);
  if (all > static_cast<size_t>(sizes_.positions)) {
    throw std::runtime_error("the request needs " + std::to_string(all) +
                             " positions of keys and values, and there are " + std::to_string(sizes_.positions));
  }
  prompt_length = static_cast<int>(read);
  return static_cast<int>(all);
}

void Batch::check(const Request& request) const {
  const GenerationOptions& options = request.options;
  options.validate(static_cast<size_t>(generator_.shape().vocab_size));
  check_prompts({request.prefix.data(), 1, request.prefix_length}, {request.prompt}, generator_);
  if (rows_of(options) > sizes_.rows) {
    throw std::runtime_error("the request needs " + std::to_string(rows_of(options)) + " rows, and there are " +
                             std::to_string(sizes_.rows));
  }
  int prompt_length = 0;
  positions_of(request, prompt_length);
  if (generator_.shape().bidirectional_prompt && prompt_length > sizes_.read) {
    throw std::runtime_error("image and prompt have " + std::to_string(prompt_length) +
                             " positions, which this model reads at once, and a step reads " +
                             std::to_string(sizes_.read));
  }
  if (generator_.encoder() != nullptr &&
      static_cast<size_t>(request.prefix_length) + request.prompt.size() > static_cast<size_t>(sizes_.positions)) {
    throw std::runtime_error("image and prompt have more positions than the " + std::to_string(sizes_.positions) +
                             " that there are");
  }
}

void Batch::step() {
  const ActiveCall call;
  let_go();
  while (!waiting_.empty() && let_in(waiting_.front())) {
    waiting_.pop_front();
    if (generator_.encoder() != nullptr) break;  // a newcomer's encoder runs here: one a step
  }
  drop_ended();
  if (running_.empty()) return;

  decoder_.clear();
  bool answers = false;
  int readers = 0, left = sizes_.read;
  for (Running& one : running_) one.first_row = -1;
  const Running* alone = generator_.shape().bidirectional_prompt ? newcomer() : nullptr;
  for (Running& one : running_) {
    if (one.fed < 0 || alone != nullptr) continue;
    feed(one);
    answers = true;
  }
  for (Running& one : running_) {
    if (one.fed >= 0 || left == 0 || (alone != nullptr && alone != &one)) continue;
    const int before = decoder_.rows();
    read(one, left);
    left -= decoder_.rows() - before;
    ++readers;
  }
  const bool in_order = !answers && readers == 1;
  try {
    decoder_.run(in_order);
  } catch (...) {
    for (Running& one : running_) {
      if (one.first_row < 0) continue;
      release(one);
      one.ticket->fail(std::current_exception());
    }
    drop_ended();
    return;
  }
  ++counters_.steps;
  for (Running& one : running_) {
    if (one.first_row < 0) continue;
    try {
      advance(one, in_order);
    } catch (...) {
      release(one);
      one.ticket->fail(std::current_exception());
    }
  }
  drop_ended();
}

// Ends requests that were cancelled.
void Batch::let_go() {
  for (Running& one : running_) {
    if (one.ticket->cancelled()) finish(one);
  }
  drop_ended();
  for (auto ticket = waiting_.begin(); ticket != waiting_.end();) {
    if (!(*ticket)->cancelled()) {
      ++ticket;
      continue;
    }
    Outcome outcome;
    outcome.results.emplace_back();
    (*ticket)->end(std::move(outcome));
    ++counters_.requests;
    ticket = waiting_.erase(ticket);
  }
}

// Takes a request into the batch where rows and positions are free. Returns false where it has to wait.
bool Batch::let_in(const std::shared_ptr<Ticket>& ticket) {
  const Request& request = ticket->request();
  const int rows = rows_of(request.options);
  if (rows_ + rows > sizes_.rows) return false;
  int prompt_length = 0;
  const int count = positions_of(request, prompt_length);
  const bool encodes = generator_.encoder() != nullptr;
  const int cross_length = encodes ? request.prefix_length + static_cast<int>(request.prompt.size()) : 0;
  const auto start = pool_.take(count);
  if (!start) return false;
  const auto cross_start = cross_pool_.take(cross_length);
  if (!cross_start) {
    pool_.give_back(*start, count);
    return false;
  }
  rows_ += rows;
  Running& one = running_.emplace_back();
  one.ticket = ticket;
  one.prefix_length = encodes ? 0 : request.prefix_length;
  one.start = *start;
  one.count = count;
  one.cross_start = *cross_start;
  one.cross_length = cross_length;
  try {
    begin(one);
  } catch (...) {
    release(one);
    ticket->fail(std::current_exception());
  }
  return true;
}

void Batch::begin(Running& one) {
  const Request& request = one.ticket->request();
  const GenerationOptions& options = request.options;
  std::vector<int64_t> given = options.forced_prefix, history;
  if (generator_.encoder() != nullptr) {
    given.insert(given.begin(), generator_.decoder_start_token_id());
    one.tokens = given;
    decoder_.encode(request.prefix.data(), request.prefix_length, request.prompt, one.cross_start);
  } else {
    one.tokens = request.prompt;
    one.tokens.insert(one.tokens.end(), given.begin(), given.end());
    if (options.counts_prompt) {
      options.append_image(history, static_cast<size_t>(request.prefix_length));
      history.insert(history.end(), request.prompt.begin(), request.prompt.end());
    }
  }
  history.insert(history.end(), given.begin(), given.end());
  const size_t draws = options.draws_independently() ? static_cast<size_t>(options.num_return_sequences) : 1;
  one.ended_draws.resize(draws);
  for (size_t draw = 0; draw < draws; ++draw) {
    const Random random(options.seed, options.first_image, draw);
    one.answers.push_back({draw, std::make_unique<Search>(options, scores_.size(), history, random)});
  }
  if (request.image.empty() || !keeps_prefixes(generator_)) return;
  std::vector<int64_t> known(static_cast<size_t>(one.prefix_length), kOfImage);
  known.insert(known.end(), one.tokens.begin(), one.tokens.end());
  one.kept = one.read = store_.load(request.image, known, one.start, one.prompt_length() - 1);
  ++(one.kept > 0 ? counters_.hits : counters_.misses);
  counters_.kept_positions += static_cast<uint64_t>(one.kept);
}

// What a row sees: one row lies behind its prompt, several share the prompt and lie behind it, one after the other.
Seen Batch::seen_of(const Running& one, int row, int before) const {
  const int prompt = one.prompt_length();
  Seen seen = {0, 0, one.start, prompt + before, one.cross_start, one.cross_length};
  if (rows_of(one.options()) > 1) {
    seen.prompt_start = one.start;
    seen.prompt_length = prompt;
    seen.start = one.start + prompt + row * one.options().max_new_tokens;
    seen.before = before;
  }
  return seen;
}

// Returns the first request whose prompt is to be read, or nullptr.
const Batch::Running* Batch::newcomer() const {
  const auto is_new = [](const Running& one) { return one.fed < 0; };
  const auto found = std::find_if(running_.begin(), running_.end(), is_new);
  return found == running_.end() ? nullptr : &*found;
}

// Adds the rows of the answers that go on.
void Batch::feed(Running& one) {
  const int beams = one.options().num_beams;
  one.first_row = decoder_.rows();
  for (const Answer& answer : one.answers) {
    for (int beam = 0; beam < beams; ++beam) {
      decoder_.add(answer.search->token(beam), seen_of(one, static_cast<int>(answer.draw) + beam, one.fed));
    }
  }
  one.last_row = decoder_.rows() - 1;
}

// Adds the next positions of the prompt.
void Batch::read(Running& one, int most) {
  const auto width = static_cast<size_t>(generator_.shape().hidden_size);
  const int end = std::min(one.prompt_length(), one.read + most);
  one.first_row = decoder_.rows();
  for (; one.read < end; ++one.read) {
    const Seen seen = {0, 0, one.start, one.read, one.cross_start, one.cross_length};
    if (one.read < one.prefix_length) {
      decoder_.add(one.ticket->request().prefix.data() + static_cast<size_t>(one.read) * width, seen);
    } else {
      decoder_.add(one.tokens[static_cast<size_t>(one.read - one.prefix_length)], seen);
    }
  }
  one.last_row = decoder_.rows() - 1;
}

// Goes on with what the run says of a request. `in_order`: the run had this one alone, and its logits are row 0.
void Batch::advance(Running& one, bool in_order) {
  if (one.fed < 0 && one.read < one.prompt_length()) return;
  const bool last = Clock::now() >= one.ticket->deadline();
  one.timed_out = one.timed_out || last;
  added_.clear();
  if (one.fed < 0) {
    keep(one, {});
    choose_first(one, in_order ? 0 : one.last_row, last);
  } else {
    choose_next(one, last);
  }
  if (!added_.empty()) one.ticket->post(added_);
  for (Answer& answer : one.answers) {
    if (answer.search->done()) one.ended_draws[answer.draw] = answer.search->results();
  }
  const auto done = [](const Answer& answer) { return answer.search->done(); };
  one.answers.erase(std::remove_if(one.answers.begin(), one.answers.end(), done), one.answers.end());
  if (one.answers.empty()) finish(one);
}

// Chooses every answer's first token by the logits of the prompt's last position, which all answers share.
void Batch::choose_first(Running& one, int row, bool last) {
  one.fed = 0;
  for (size_t i = 0; i < one.answers.size(); ++i) {
    float* scores = decoder_.logits(row);
    if (i + 1 < one.answers.size()) {  // a search overwrites what it reads
      std::copy_n(scores, scores_.size(), scores_.data());
      scores = scores_.data();
    }
    choose(one, one.answers[i], scores, 1, last);
  }
}

void Batch::choose_next(Running& one, bool last) {
  ++one.fed;
  const int beams = one.options().num_beams, own = one.start + one.prompt_length();
  int row = one.first_row;
  for (Answer& answer : one.answers) {
    choose(one, answer, decoder_.logits(row), beams, last);
    row += beams;
  }
  for (int beam = 0; beams > 1 && beam < beams; ++beam) {  // a beam takes over its parent's positions
    const int parent = one.answers.front().search->parent(beam), size = one.options().max_new_tokens;
    decoder_.cache().copy_positions(0, own + parent * size, own + beam * size, one.fed);
  }
}

void Batch::choose(Running& one, Answer& answer, float* scores, int rows, bool last) {
  answer.search->advance(scores, rows, last);
  ++counters_.tokens;
  if (one.options().num_beams > 1) return;
  if (const auto token = answer.search->added()) added_.push_back({one.ticket->request().number, answer.draw, *token});
}

// Ends a request with what there is.
void Batch::finish(Running& one) {
  for (const Answer& answer : one.answers) one.ended_draws[answer.draw] = answer.search->results();
  Outcome outcome;
  for (std::vector<Hypothesis>& draw : one.ended_draws) {
    for (Hypothesis& each : draw) {
      outcome.results.push_back(std::move(each));
      if (one.options().draws_independently()) break;
    }
  }
  outcome.prompt_length = one.prompt_length();
  outcome.kept_length = one.kept;
  outcome.steps = one.fed + 1;
  outcome.timed_out = one.timed_out;
  if (rows_of(one.options()) == 1 && one.fed > 0) keep(one, outcome.results.front().tokens);
  release(one);
  one.ticket->end(std::move(outcome));
}

// Keeps what a request has read, and of what it has `said` all that is in the cache.
void Batch::keep(const Running& one, const std::vector<int64_t>& said) {
  const std::string& image = one.ticket->request().image;
  if (image.empty() || !keeps_prefixes(generator_)) return;
  std::vector<int64_t> known(static_cast<size_t>(one.prefix_length), kOfImage);
  known.insert(known.end(), one.tokens.begin(), one.tokens.end());
  const auto fed = static_cast<ptrdiff_t>(std::min(said.size(), static_cast<size_t>(std::max(0, one.fed))));
  known.insert(known.end(), said.begin(), said.begin() + fed);
  try {
    store_.save(image, known, one.start);
  } catch (const std::bad_alloc&) {  // it is a gain, not a need
  }
}

void Batch::release(Running& one) {
  pool_.give_back(one.start, one.count);
  cross_pool_.give_back(one.cross_start, one.cross_length);
  rows_ -= rows_of(one.options());
  one.first_row = -1;
  one.ended = true;
  ++counters_.requests;
}

void Batch::drop_ended() {
  const auto ended = [](const Running& one) { return one.ended; };
  running_.erase(std::remove_if(running_.begin(), running_.end(), ended), running_.end());
}

void Batch::fail_all(const std::exception_ptr& failure) {
  for (Running& one : running_) {
    release(one);
    one.ticket->fail(failure);
  }
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
