// Lays out the searches of a batch and reads their results.
#include "search/search_batch.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace blip2rt {
namespace {

// Throws for a token outside the vocabulary, because tokens index scores.
void check_tokens(const std::vector<int64_t>& tokens, size_t vocab_size) {
  for (int64_t token : tokens) {
    if (token < 0 || static_cast<size_t>(token) >= vocab_size) {
      throw std::runtime_error("token id " + std::to_string(token) + " is outside the vocabulary of " +
                               std::to_string(vocab_size));
    }
  }
}

}  // namespace

SearchBatch::SearchBatch(size_t images, const std::vector<int64_t>& context, size_t vocab_size,
                         GenerationOptions options, const std::vector<std::vector<int64_t>>& before)
    : options_(std::move(options)), images_(images), vocab_size_(vocab_size) {
  options_.validate(vocab_size);
  if (!options_.guides.empty()) throw std::runtime_error("guides are for searches on the CPU");
  if (!before.empty() && before.size() != images) throw std::runtime_error("before must have a list per image");
  size_t min_context_room = 0;
  for (const auto& tokens : before) {
    check_tokens(tokens, vocab_size);
    min_context_room = std::max(min_context_room, tokens.size());
  }
  min_context_room += context.size();
  const size_t draws = options_.draws_independently() ? static_cast<size_t>(options_.num_return_sequences) : 1;
  for (size_t image = 0; image < images; ++image) {
    std::vector<int64_t> history = before.empty() ? std::vector<int64_t>() : before[image];
    history.insert(history.end(), context.begin(), context.end());
    for (size_t draw = 0; draw < draws; ++draw) {
      const Random random(options_.seed, options_.first_image + image, draw);
      const BlockMemory made = make_block(options_, vocab_size, history, random, min_context_room);
      stride_ = made.size() * sizeof(uint64_t);
      memory_.insert(memory_.end(), made.begin(), made.end());
      answers_.push_back({image, draw});
    }
  }
}

void SearchBatch::advance(float* scores, bool last) {
  const VocabularyView vocabulary = options_.vocabulary ? options_.vocabulary->view() : VocabularyView();
  CpuReader reader(options_, vocab_size_);
  for (size_t answer = 0; answer < answers(); ++answer) {
    SearchBlock& one = block(answer);
    const int32_t rows = one.length == 0 ? 1 : one.num_beams;
    if (!one.done) one.advance(reader, scores, rows, last, vocabulary);
    scores += static_cast<size_t>(rows) * vocab_size_;
  }
  check();
}

void SearchBatch::check() const {
  for (size_t answer = 0; answer < answers(); ++answer) throw_on_fault(block(answer));
}

bool SearchBatch::done() const {
  for (size_t answer = 0; answer < answers(); ++answer) {
    if (!block(answer).done) return false;
  }
  return true;
}

std::vector<NewToken> SearchBatch::added() {
  std::vector<NewToken> added;
  if (options_.num_beams > 1 && options_.num_return_sequences > 1) return added;
  std::vector<std::vector<int64_t>> fresh;
  size_t most = 0;
  for (size_t answer = 0; answer < answers(); ++answer) {
    const Tokens settled = settled_tokens(block(answer));
    int& reported = answers_[answer].reported;
    fresh.emplace_back();
    for (; reported < settled.count; ++reported) fresh.back().push_back(settled.first[reported]);
    most = std::max(most, fresh.back().size());
  }
  for (size_t step = 0; step < most; ++step) {  // in the order of the steps
    for (size_t answer = 0; answer < answers(); ++answer) {
      if (step >= fresh[answer].size()) continue;
      added.push_back({answers_[answer].image, answers_[answer].draw, fresh[answer][step]});
    }
  }
  return added;
}

std::vector<std::vector<Hypothesis>> SearchBatch::results() const {
  std::vector<std::vector<Hypothesis>> results(images_);
  for (size_t answer = 0; answer < answers(); ++answer) {
    auto& image = results[answers_[answer].image];
    for (Hypothesis& one : best_sequences(block(answer), options_)) {
      image.push_back(std::move(one));
      if (options_.draws_independently()) break;
    }
  }
  return results;
}

}  // namespace blip2rt
