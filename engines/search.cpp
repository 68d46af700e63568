// Greedy and beam search for one image, token for token what Hugging Face `generate` does from
// inputs_embeds (where lengths count new tokens only). Knows logits and token ids.
#include "search.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace blip2rt {
namespace {

// Candidates looked at in a step: even when every beam's best tokens are stop tokens, num_beams that go
// on remain.
size_t candidates_kept(const SearchOptions& options) {
  if (options.num_beams == 1) return 1;
  return std::max<size_t>(2, 1 + options.eos_token_ids.size()) * static_cast<size_t>(options.num_beams);
}

}  // namespace

void SearchOptions::validate(size_t vocab_size) const {
  std::string faults;
  const auto require = [&faults](bool holds, const std::string& fault) {
    if (!holds) faults += (faults.empty() ? "" : "; ") + fault;
  };
  require(num_beams >= 1, "num_beams is " + std::to_string(num_beams) + ", must be at least 1");
  require(num_return_sequences >= 1 && num_return_sequences <= num_beams,
          "num_return_sequences is " + std::to_string(num_return_sequences) + ", must be 1 to num_beams (" +
              std::to_string(num_beams) + ")");
  require(max_new_tokens >= 1, "max_new_tokens is " + std::to_string(max_new_tokens) + ", must be at least 1");
  require(min_new_tokens >= 0, "min_new_tokens is " + std::to_string(min_new_tokens) + ", must be at least 0");
  require(std::isfinite(length_penalty), "length_penalty must be a finite number");
  for (int64_t token : eos_token_ids) {
    require(token >= 0 && static_cast<size_t>(token) < vocab_size,
            "eos token id " + std::to_string(token) + " is outside the vocabulary of " + std::to_string(vocab_size));
  }
  require(num_beams < 1 || candidates_kept(*this) + eos_token_ids.size() <= vocab_size,
          "num_beams is " + std::to_string(num_beams) + ", too many for a vocabulary of " + std::to_string(vocab_size));
  if (!faults.empty()) throw std::runtime_error("bad generation options: " + faults);
}

Search::Search(const SearchOptions& options, size_t vocab_size)
    : options_(&options), scorer_(vocab_size), best_(candidates_kept(options)) {
  const auto beams = static_cast<size_t>(options.num_beams);
  const auto history = beams * static_cast<size_t>(options.max_new_tokens);
  if (options.min_new_tokens > 0) forbidden_ = options.eos_token_ids;
  tokens_.assign(beams, 0);
  parents_.assign(beams, 0);
  scores_.assign(beams, 0.0f);
  next_scores_.assign(beams, 0.0f);
  history_.assign(history, 0);
  next_history_.assign(history, 0);
  finished_.reserve(beams + 1);
}

void Search::advance(float* logits, int rows) {
  if (length_ == options_->min_new_tokens) forbidden_.clear();
  best_.clear();
  for (int row = 0; row < rows; ++row) {
    float* row_logits = logits + static_cast<size_t>(row) * scorer_.vocab_size();
    scorer_.score(row_logits, scores_[static_cast<size_t>(row)], row, forbidden_, best_);
  }
  ++length_;
  if (options_->num_beams == 1) {
    choose_greedy();
  } else {
    choose_beams();
  }
}

void Search::choose_greedy() {
  const Candidate& choice = best_.items().front();
  const bool stop = is_eos(choice.token) || length_ == options_->max_new_tokens;
  if (stop) {
    finish(choice);
    done_ = true;
  } else {
    keep_running(choice, 0);
    std::swap(scores_, next_scores_);
    std::swap(history_, next_history_);
  }
}

void Search::choose_beams() {
  const bool last = length_ == options_->max_new_tokens;
  int running = 0;
  for (size_t rank = 0; rank < best_.items().size(); ++rank) {
    const Candidate& candidate = best_.items()[rank];
    if (last || is_eos(candidate.token)) {
      // The candidates after num_beams are there to go on, not to be returned.
      if (rank < static_cast<size_t>(options_->num_beams)) finish(candidate);
    } else if (running < options_->num_beams) {
      keep_running(candidate, running++);
    }
  }
  std::swap(scores_, next_scores_);
  std::swap(history_, next_history_);
  done_ = last || !can_improve();
}

void Search::keep_running(const Candidate& candidate, int beam) {
  const auto to = static_cast<size_t>(beam), from = static_cast<size_t>(candidate.row);
  const auto stride = static_cast<size_t>(options_->max_new_tokens);
  const auto kept = static_cast<size_t>(length_ - 1);
  tokens_[to] = candidate.token;
  parents_[to] = candidate.row;
  next_scores_[to] = candidate.score;
  std::copy_n(history_.begin() + static_cast<ptrdiff_t>(from * stride), kept,
              next_history_.begin() + static_cast<ptrdiff_t>(to * stride));
  next_history_[to * stride + kept] = candidate.token;
}

void Search::finish(const Candidate& candidate) {
  const float score = normalised(candidate.score, length_);
  const auto worse = [score](const Hypothesis& other) { return other.score < score; };
  const auto place = std::find_if(finished_.begin(), finished_.end(), worse);
  if (place == finished_.end() && finished_.size() == static_cast<size_t>(options_->num_beams)) return;

  const auto start = history_.begin() + static_cast<ptrdiff_t>(candidate.row) * options_->max_new_tokens;
  Hypothesis hypothesis{std::vector<int64_t>(start, start + (length_ - 1)), score};
  if (!is_eos(candidate.token)) hypothesis.tokens.push_back(candidate.token);
  finished_.insert(place, std::move(hypothesis));
  if (finished_.size() > static_cast<size_t>(options_->num_beams)) finished_.pop_back();
}

bool Search::can_improve() const {
  if (finished_.size() < static_cast<size_t>(options_->num_beams)) return true;
  if (options_->early_stopping == EarlyStopping::kTrue) return false;
  // Only "never" allows for a running beam whose score still rises with its length.
  const bool may_rise = options_->early_stopping == EarlyStopping::kNever && options_->length_penalty > 0;
  return normalised(scores_[0], may_rise ? options_->max_new_tokens : length_) > finished_.back().score;
}

bool Search::is_eos(int64_t token) const {
  const auto& ids = options_->eos_token_ids;
  return std::find(ids.begin(), ids.end(), token) != ids.end();
}

float Search::normalised(float sum, int length) const {
  return sum / static_cast<float>(std::pow(static_cast<double>(length), options_->length_penalty));
}

std::vector<Hypothesis> Search::results() const {
  const auto count = std::min(finished_.size(), static_cast<size_t>(options_->num_return_sequences));
  return {finished_.begin(), finished_.begin() + static_cast<ptrdiff_t>(count)};
}

}  // namespace blip2rt
