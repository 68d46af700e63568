// Greedy search, sampling and beam search for one answer. Knows scores and token ids.
#include "search.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

namespace blip2rt {
namespace {

constexpr float kHopeless = -1e9f;  // what Hugging Face adds to the score of a beam that has stopped

}  // namespace

size_t candidates_kept(const GenerationOptions& options) {
  return std::max<size_t>(2, 1 + options.eos_token_ids.size()) * static_cast<size_t>(options.num_beams);
}

Search::Search(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& given,
               const Random& random)
    : options_(options),
      given_(given.size()),
      longest_(given.size() + static_cast<size_t>(options.max_new_tokens)),
      scorer_(vocab_size),
      processors_(options, longest_),
      sampler_(options, vocab_size),
      stop_strings_(options.stop_strings, options.vocabulary.get()),
      random_(random),
      best_(candidates_kept(options)) {
  const auto beams = static_cast<size_t>(options.num_beams);
  running_.reserve(beams);
  tokens_.assign(beams, 0);
  parents_.assign(beams, 0);
  scores_.assign(beams, 0.0f);
  next_scores_.assign(beams, 0.0f);
  history_.assign(beams * longest_, 0);
  for (size_t beam = 0; beam < beams; ++beam) std::copy(given.begin(), given.end(), history(beam));
  finished_.reserve(beams + 1);
  finished_tokens_.assign(beams * static_cast<size_t>(options.max_new_tokens), 0);
}

void Search::advance(float* scores, int rows, bool last) {
  last_ = last || length_ + 1 == options_.max_new_tokens;
  if (options_.num_beams == 1) {
    choose_one(scores);
  } else {
    choose_beams(scores, rows);
  }
}

void Search::choose_one(float* scores) {
  processors_.apply(scores, history(0), written(), length_);
  scorer_.measure(scores);
  int token = scorer_.argmax(scores);
  if (options_.do_sample) {
    sampler_.clear();
    sampler_.add(scores, scorer_, 0);
    const std::optional<Candidate> drawn = sampler_.draw(random_);
    if (!drawn) throw std::runtime_error("the options forbid every token: there is nothing to draw");
    token = drawn->token;
  }
  const float score = scores_[0] + (scores[token] - scorer_.largest() - scorer_.log_sum());
  const Candidate choice{score, 0, token};
  done_ = stops(choice);
  if (done_) finish(choice);
  scores_[0] = score;
  go_on(0, choice);
  history(0)[written()] = token;
  ++length_;
}

void Search::choose_beams(float* scores, int rows) {
  best_.clear();
  sampler_.clear();
  for (int row = 0; row < rows; ++row) {
    float* row_scores = scores + static_cast<size_t>(row) * scorer_.vocab_size();
    options_.do_sample ? sample_beam(row_scores, row) : offer_beam(row_scores, row);
  }
  if (options_.do_sample) draw_beams();

  const auto beams = static_cast<size_t>(options_.num_beams);
  running_.clear();
  for (size_t rank = 0; rank < best_.items().size(); ++rank) {
    const Candidate& candidate = best_.items()[rank];
    if (!stops(candidate)) {
      if (running_.size() < beams) running_.push_back(candidate);
    } else if (rank < beams) {  // those after num_beams are there to go on, not to be returned
      finish(candidate);
    }
  }
  const bool all_stopped = running_.empty();
  for (const Candidate& candidate : best_.items()) {  // so many stopped that some must go on, without hope
    if (running_.size() == beams) break;
    if (stops(candidate)) running_.push_back({candidate.score + kHopeless, candidate.row, candidate.token});
  }
  place_running();
  ++length_;
  done_ = all_stopped || !can_improve();
}

void Search::offer_beam(float* scores, int row) {
  const auto beam = static_cast<size_t>(row);
  scorer_.measure(scores);
  if (processors_.penalise()) scorer_.normalise(scores);  // Hugging Face's beams penalise log-probabilities, not logits
  processors_.apply(scores, history(beam), written(), length_);
  if (processors_.penalise()) scorer_.measure_again(scores);
  scorer_.offer(scores, scores_[beam], row, best_);
}

void Search::sample_beam(float* scores, int row) {
  const auto beam = static_cast<size_t>(row);
  scorer_.measure(scores);
  scorer_.normalise(scores);
  processors_.apply(scores, history(beam), written(), length_);
  scorer_.measure(scores);  // of what the processors have left
  sampler_.add(scores, scorer_, scores_[beam]);
}

// Candidates drawn from the continuations of all beams together, none twice. Where too few have any probability, some
// that have none fill up.
void Search::draw_beams() {
  const size_t wanted = candidates_kept(options_);
  while (best_.items().size() < wanted) {
    const std::optional<Candidate> drawn = sampler_.draw(random_);
    if (!drawn) break;
    best_.offer(*drawn);
  }
  for (int token = 0; best_.items().size() < wanted; ++token) {
    const auto same = [token](const Candidate& other) { return other.row == 0 && other.token == token; };
    if (std::any_of(best_.items().begin(), best_.items().end(), same)) continue;
    best_.offer({-std::numeric_limits<float>::infinity(), 0, token});
  }
}

void Search::go_on(size_t beam, const Candidate& candidate) {
  const auto parent = static_cast<size_t>(candidate.row);
  if (parent != beam) std::copy_n(history(parent), written(), history(beam));
  parents_[beam] = candidate.row;
  tokens_[beam] = candidate.token;
}

// A beam's best child takes its place, the others the places of beams without children: what is not copied stays.
void Search::place_running() {
  std::fill(parents_.begin(), parents_.end(), -1);
  for (Candidate& candidate : running_) {
    const auto parent = static_cast<size_t>(candidate.row);
    if (parents_[parent] >= 0) continue;
    go_on(parent, candidate);
    next_scores_[parent] = candidate.score;
    candidate.token = -1;
  }
  size_t free = 0;
  for (const Candidate& candidate : running_) {
    if (candidate.token < 0) continue;
    while (parents_[free] >= 0) ++free;
    go_on(free, candidate);
    next_scores_[free] = candidate.score;
  }
  std::swap(scores_, next_scores_);
  for (size_t beam = 0; beam < parents_.size(); ++beam) history(beam)[written()] = tokens_[beam];
}

void Search::finish(const Candidate& candidate) {
  const float score = normalised(candidate.score, length_ + 1);
  const auto worse = [score](const Finished& other) { return other.score < score; };
  const auto place = std::find_if(finished_.begin(), finished_.end(), worse);
  const bool full = finished_.size() == static_cast<size_t>(options_.num_beams);
  if (place == finished_.end() && full) return;

  const size_t row = full ? finished_.back().row : finished_.size();
  const size_t length = static_cast<size_t>(length_) + (is_eos(candidate.token) ? 0 : 1);
  int64_t* tokens = finished_tokens_.data() + row * static_cast<size_t>(options_.max_new_tokens);
  std::copy_n(history(static_cast<size_t>(candidate.row)) + given_, length_, tokens);
  if (!is_eos(candidate.token)) tokens[length_] = candidate.token;
  finished_.insert(place, {score, row, length});
  if (full) finished_.pop_back();
}

bool Search::can_improve() const {
  const float best = *std::max_element(scores_.begin(), scores_.end());
  // Only "never" allows for a running beam whose score still rises with its length.
  const bool may_rise = options_.early_stopping == EarlyStopping::kNever && options_.length_penalty > 0;
  const float hope = normalised(best, may_rise ? options_.max_new_tokens : length_);
  if (finished_.size() < static_cast<size_t>(options_.num_beams)) return hope > kHopeless;
  return options_.early_stopping != EarlyStopping::kTrue && hope > finished_.back().score;
}

bool Search::is_eos(int64_t token) const {
  const auto& ids = options_.eos_token_ids;
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

bool Search::stops(const Candidate& candidate) {
  return last_ || is_eos(candidate.token) ||
         stop_strings_.completed_by(candidate.token, history(static_cast<size_t>(candidate.row)), written());
}

float Search::normalised(float sum, int length) const {
  return sum / static_cast<float>(std::pow(static_cast<double>(length), options_.length_penalty));
}

std::optional<int64_t> Search::added() const {
  if (length_ == 0 || is_eos(tokens_[0])) return std::nullopt;
  return tokens_[0];
}

std::vector<Hypothesis> Search::results() const {
  std::vector<Hypothesis> results;
  for (const Finished& one : finished_) {
    if (results.size() == static_cast<size_t>(options_.num_return_sequences)) break;
    const int64_t* tokens = finished_tokens_.data() + one.row * static_cast<size_t>(options_.max_new_tokens);
    results.push_back({{tokens, tokens + one.length}, one.score});
  }
  if (results.empty()) {  // none has finished yet, or none can: the best of those that run
    const auto best = static_cast<size_t>(std::max_element(scores_.begin(), scores_.end()) - scores_.begin());
    const int64_t* tokens = history(best) + given_;
    results.push_back({{tokens, tokens + length_}, normalised(scores_[best], std::max(length_, 1))});
  }
  return results;
}

}  // namespace blip2rt
