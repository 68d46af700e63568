// Steps a generation. Reads top to bottom as the data flows. Knows rows and images.
#include "loop/generation.h"

#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>

#include "loop/request.h"
#include "ort/active_call.h"

namespace blip2rt {

Generation::Generation(const Generator& generator, const Prefix& prefix, Prompts prompts, GenerationOptions options)
    : generator_(generator), options_(std::move(options)), prefix_(prefix), prompts_(std::move(prompts)) {
  begin(0, {});
  if (done_) return;
  int longest = 0;
  for (const Active& one : active_) longest = std::max(longest, one.prompt_length);
  if (longest > INT32_MAX - options_.max_new_tokens ||
      prompts_.size() > INT32_MAX / static_cast<size_t>(options_.rows_each())) {
    throw std::bad_alloc();
  }
  const int rows = static_cast<int>(prompts_.size()) * options_.rows_each();
  decoder_ = std::make_shared<Decoder>(generator, rows, longest + options_.max_new_tokens);
}

Generation::Generation(const Generator& generator, std::shared_ptr<Decoder> decoder, const Prefix& prefix, int past,
                       std::vector<int64_t> prompt, GenerationOptions options, const std::vector<int64_t>& said)
    : generator_(generator),
      options_(std::move(options)),
      prefix_(prefix),
      prompts_{std::move(prompt)},
      decoder_(std::move(decoder)) {
  begin(past, said);
}

void Generation::begin(int past, const std::vector<int64_t>& said) {
  generator_.llm().check_process();
  check_prompts(prefix_, prompts_, generator_);
  options_.validate(static_cast<size_t>(generator_.shape().vocab_size));
  past_ = past;
  deadline_ = deadline_after(options_.max_time);
  results_.resize(prompts_.size());
  done_ = prompts_.empty();

  const bool encoded = generator_.encoder() != nullptr;  // the cache then holds the answer alone
  std::vector<int64_t> given = options_.forced_prefix;
  if (encoded) given.insert(given.begin(), generator_.decoder_start_token_id());
  const size_t draws = options_.draws_independently() ? static_cast<size_t>(options_.num_return_sequences) : 1;
  for (size_t image = 0; image < prompts_.size(); ++image) {
    const size_t read = given.size() + (encoded ? 0 : static_cast<size_t>(prefix_.length) + prompts_[image].size());
    results_[image].resize(options_.draws_independently() ? draws : 0);
    std::vector<int64_t> history;
    if (options_.counts_prompt && !encoded) {
      history = said;
      options_.append_image(history, static_cast<size_t>(prefix_.length));
      history.insert(history.end(), prompts_[image].begin(), prompts_[image].end());
    }
    history.insert(history.end(), given.begin(), given.end());
    for (size_t draw = 0; draw < draws; ++draw) {
      const Random random(options_.seed, options_.first_image + image, draw);
      const auto vocab_size = static_cast<size_t>(generator_.shape().vocab_size);
      auto search = std::make_unique<Search>(options_, vocab_size, history, random);
      active_.push_back({image, draw, past + static_cast<int>(read), std::move(search)});
    }
    if (!encoded) prompts_[image].insert(prompts_[image].end(), given.begin(), given.end());
  }
  added_.reserve(active_.size());
}

Generation::InUse::InUse(const Generation& generation) : generation_(generation) {
  if (generation.in_use_.test_and_set(std::memory_order_acquire)) {
    throw std::runtime_error("this generation is being stepped already: one thread at a time");
  }
}

void Generation::step() {
  generator_.llm().check_process();
  const ActiveCall call;
  added_.clear();
  if (done_) return;
  const Decoder::InUse in_use(*decoder_);
  if (done_) return;  // a chat has ended it in the meantime
  try {
    if (steps_ < 0) {
      first_step();
    } else {
      const auto start = Clock::now();
      const double graphs = decoder_->graph_seconds();
      next_step();
      spent_.graphs += decoder_->graph_seconds() - graphs;
      spent_.steps += std::chrono::duration<double>(Clock::now() - start).count();
    }
    done_ = active_.empty();
  } catch (...) {
    done_ = true;  // nothing can follow half a step
    throw;
  }
}

void Generation::first_step() {
  if (generator_.encoder() != nullptr) {
    decoder_->encode(prefix_, prompts_);
    std::vector<int64_t> given = {generator_.decoder_start_token_id()};
    given.insert(given.end(), options_.forced_prefix.begin(), options_.forced_prefix.end());
    decoder_->read({nullptr, prefix_.images, 0}, Prompts(prompts_.size(), given));
  } else {
    decoder_->read(prefix_, prompts_, past_);
  }
  steps_ = 0;
  // Spreads one row an image to one row a draw. Goes backwards: no row is overwritten before it is read.
  for (size_t row = active_.size(); row-- > 0;) {
    decoder_->copy_row(static_cast<int>(active_[row].image), static_cast<int>(row), 0);
    decoder_->copy_logits(static_cast<int>(active_[row].image), static_cast<int>(row));
  }
  advance(1);
  retire(1);
  spread_to_beams();
}

void Generation::next_step() {
  const int beams = options_.num_beams;
  if (rebind_) decoder_->set_rows(static_cast<int>(active_.size()) * beams);
  int row = 0;
  for (const Active& one : active_) {
    for (int beam = 0; beam < beams; ++beam) {
      decoder_->token(row) = one.search->token(beam);
      decoder_->set_answered(row++, steps_);
    }
  }
  decoder_->step();
  ++steps_;
  advance(beams);
  rebind_ = retire(beams);
  int first = 0;
  for (const Active& one : active_) {  // a beam takes over its parent's positions
    for (int beam = 0; beam < beams; ++beam) {
      const int parent = one.search->parent(beam);
      decoder_->copy_answer(first + parent, first + beam, steps_);
    }
    first += beams;
  }
}

void Generation::advance(int rows_each) {
  const bool last = Clock::now() >= deadline_;
  int row = 0;
  for (Active& one : active_) {
    one.search->advance(decoder_->logits(row), rows_each, last);
    row += rows_each;
    if (options_.num_beams > 1) continue;
    if (const auto token = one.search->added()) added_.push_back({one.image, one.draw, *token});
  }
}

// Takes finished answers out of the batch: the last answer moves into the rows of a finished one. Returns whether an
// answer was taken out.
bool Generation::retire(int rows_each) {
  const size_t before = active_.size();
  for (size_t i = active_.size(); i-- > 0;) {
    if (!active_[i].search->done()) continue;
    std::vector<Hypothesis> best = active_[i].search->results();
    if (options_.draws_independently()) {
      results_[active_[i].image][active_[i].draw] = std::move(best.front());
    } else {
      results_[active_[i].image] = std::move(best);
    }
    const size_t last = active_.size() - 1;
    if (i != last) {
      for (int beam = 0; beam < rows_each; ++beam) {
        const int from = static_cast<int>(last) * rows_each + beam, to = static_cast<int>(i) * rows_each + beam;
        decoder_->copy_row(from, to, steps_);
      }
      active_[i] = std::move(active_[last]);
    }
    active_.pop_back();
  }
  return active_.size() != before;
}

// Spreads one row an image to one row a beam. Goes backwards: no row is overwritten before it is read.
void Generation::spread_to_beams() {
  const int beams = options_.num_beams;
  for (int i = static_cast<int>(active_.size()) - 1; i >= 0; --i) {
    for (int beam = beams - 1; beam >= 0; --beam) {
      decoder_->copy_row(i, i * beams + beam, 0);
    }
  }
}

std::vector<std::vector<Hypothesis>> Generation::results() const {
  std::vector<std::vector<Hypothesis>> results = results_;
  for (const Active& one : active_) {
    std::vector<Hypothesis> best = one.search->results();
    if (options_.draws_independently()) {
      results[one.image][one.draw] = std::move(best.front());
    } else {
      results[one.image] = std::move(best);
    }
  }
  return results;
}

Generation::Kept Generation::kept() const {
  if (steps_ < 0) return {past_, 0};
  const int in_cache = options_.num_beams == 1 ? steps_ : 0;
  return {past_ + prefix_.length + static_cast<int>(prompts_[0].size()) + in_cache, in_cache};
}

std::vector<std::vector<Hypothesis>> generate(const Generator& generator, const Prefix& prefix, const Prompts& prompts,
                                              const GenerationOptions& options,
                                              const std::function<void()>& before_step,
                                              const std::function<bool(const NewToken&)>& on_token) {
  Generation generation(generator, prefix, prompts, options);
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
