// Lays out the memory blocks of searches, and reads their results.
#include "search/search.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <stdexcept>

namespace blip2rt {
namespace {

// Places arrays one after the other, aligned to 8 bytes.
class Layout {
 public:
  template <class T>
  uint32_t place(size_t count) {
    const uint64_t start = bytes_;
    bytes_ += (uint64_t{count} * sizeof(T) + 7) / 8 * 8;
    if (bytes_ > UINT32_MAX) throw std::runtime_error("the options need more than 4 GB for one answer's search");
    return static_cast<uint32_t>(start);
  }
  size_t bytes() const { return static_cast<size_t>(bytes_); }

 private:
  uint64_t bytes_ = (sizeof(SearchBlock) + 7) / 8 * 8;
};

template <class T>
size_t total_size(const std::vector<T>& lists) {
  size_t total = 0;
  for (const T& list : lists) total += list.size();
  return total;
}

// Writes lists one after the other, and the end of each.
template <class Element, class T>
void write_lists(SearchBlock& block, const std::vector<T>& lists, uint32_t ends_at, uint32_t elements_at) {
  int32_t end = 0;
  int32_t* ends = block.at<int32_t>(ends_at);
  for (const T& list : lists) {
    std::copy(list.begin(), list.end(), block.at<Element>(elements_at) + end);
    *ends++ = end += static_cast<int32_t>(list.size());
  }
}

}  // namespace

BlockMemory make_block(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& context,
                       const Random& random) {
  const auto beams = static_cast<size_t>(options.num_beams), most = static_cast<size_t>(options.max_new_tokens);
  const size_t max_history = context.size() + most;
  SearchBlock block{};
  block.length_penalty = options.length_penalty;
  block.top_p = options.top_p;
  block.min_p = options.min_p;
  block.random = random;
  block.vocab_size = static_cast<int32_t>(vocab_size);
  block.num_beams = options.num_beams;
  block.max_new_tokens = options.max_new_tokens;
  block.min_new_tokens = options.min_new_tokens;
  block.no_repeat_ngram_size = options.no_repeat_ngram_size;
  block.do_sample = options.do_sample;
  block.top_k = options.top_k;
  block.early_stopping = options.early_stopping;
  block.penalty = static_cast<float>(options.repetition_penalty);
  block.scale = static_cast<float>(1.0 / options.temperature);
  block.num_candidates = static_cast<int32_t>(options.candidate_count());
  block.min_tokens_to_keep = options.num_beams == 1 ? 1 : block.num_candidates / options.num_beams;
  block.eos_count = static_cast<int32_t>(options.eos_token_ids.size());
  block.word_count = static_cast<int32_t>(options.bad_words_ids.size());
  block.string_count = static_cast<int32_t>(options.stop_strings.size());
  block.context_length = static_cast<int32_t>(context.size());
  block.max_history = static_cast<int32_t>(max_history);

  Layout layout;
  block.eos_at = layout.place<int32_t>(options.eos_token_ids.size());
  block.word_ends_at = layout.place<int32_t>(options.bad_words_ids.size());
  block.words_at = layout.place<int32_t>(total_size(options.bad_words_ids));
  block.string_ends_at = layout.place<int32_t>(options.stop_strings.size());
  block.strings_at = layout.place<char>(total_size(options.stop_strings));
  block.tokens_at = layout.place<int32_t>(beams);
  block.parents_at = layout.place<int32_t>(beams);
  block.scores_at = layout.place<float>(beams);
  block.next_scores_at = layout.place<float>(beams);
  block.best_at = layout.place<Candidate>(static_cast<size_t>(block.num_candidates));
  block.running_at = layout.place<Candidate>(beams);
  block.history_at = layout.place<int32_t>(beams * max_history);
  block.finished_at = layout.place<SearchBlock::Finished>(beams);
  block.finished_tokens_at = layout.place<int32_t>(beams * most);
  block.penalised_at = layout.place<float>(max_history);

  BlockMemory memory(layout.bytes() / 8, 0);
  SearchBlock& placed = *new (memory.data()) SearchBlock(block);
  std::copy(options.eos_token_ids.begin(), options.eos_token_ids.end(), placed.at<int32_t>(block.eos_at));
  write_lists<int32_t>(placed, options.bad_words_ids, block.word_ends_at, block.words_at);
  write_lists<char>(placed, options.stop_strings, block.string_ends_at, block.strings_at);
  for (int beam = 0; beam < options.num_beams; ++beam) std::copy(context.begin(), context.end(), placed.history(beam));
  return memory;
}

void throw_on_fault(const SearchBlock& block) {
  switch (block.fault) {
    case Fault::kNone: return;
    case Fault::kNotFinite: throw std::runtime_error("the language model returned logits that are not finite");
    case Fault::kNothingToDraw: throw std::runtime_error("the options forbid every token: there is nothing to draw");
  }
}

std::vector<int32_t> ranking(const SearchBlock& block, const GenerationOptions& options) {
  std::vector<int32_t> order(static_cast<size_t>(block.finished_count));
  std::iota(order.begin(), order.end(), 0);
  if (options.guides.empty() || !options.guides.front()->ranks()) return order;
  std::vector<double> agreement;
  for (const int32_t i : order) {
    const SearchBlock::Finished& one = block.finished()[i];
    const auto length = static_cast<size_t>(one.length);
    agreement.push_back(options.guides.front()->agreement(block.finished_tokens(one.row), length));
  }
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return agreement[static_cast<size_t>(a)] > agreement[static_cast<size_t>(b)];
  });
  return order;
}

std::vector<Hypothesis> best_sequences(const SearchBlock& block, const GenerationOptions& options) {
  std::vector<Hypothesis> results;
  for (const int32_t i : ranking(block, options)) {
    if (results.size() == static_cast<size_t>(options.num_return_sequences)) break;
    const SearchBlock::Finished& one = block.finished()[i];
    const int32_t* tokens = block.finished_tokens(one.row);
    results.push_back({{tokens, tokens + one.length}, one.score});
  }
  if (results.empty()) {  // none has finished, or none can: take the best running one
    const float* scores = block.scores();
    const auto best = static_cast<int32_t>(std::max_element(scores, scores + block.num_beams) - scores);
    const int32_t* tokens = block.history(best) + block.context_length;
    results.push_back({{tokens, tokens + block.length}, block.normalised(scores[best], std::max(block.length, 1))});
  }
  return results;
}

Tokens settled_tokens(const SearchBlock& block) {
  Tokens common{nullptr, block.length};
  const auto share = [&common](const int32_t* tokens, int length) {
    if (common.first == nullptr) common.first = tokens;
    const int32_t* end = common.first + std::min(common.count, length);
    common.count = static_cast<int>(std::mismatch(common.first, end, tokens).first - common.first);
  };
  if (block.finished_count > 0) share(block.finished_tokens(block.finished()[0].row), block.finished()[0].length);
  if (block.done != 0 && common.first != nullptr) return common;
  for (int beam = 0; beam < block.num_beams; ++beam) {  // hopeless beams aside
    if (block.scores()[beam] > SearchBlock::kStoppedBeamScore / 2) {
      share(block.history(beam) + block.context_length, block.length);
    }
  }
  return common.first == nullptr ? Tokens() : common;
}

Search::Search(const GenerationOptions& options, size_t vocab_size, const std::vector<int64_t>& context,
               const Random& random)
    : options_(options), memory_(make_block(options, vocab_size, context, random)), reader_(options, vocab_size) {
  if (guide() != nullptr) scratch_.resize(guide()->scratch_size());
}

Tokens Search::settled() const {
  if (guide() == nullptr || !guide()->ranks() || block().num_beams == 1 || (done() && block().finished_count == 0)) {
    return settled_tokens(block());
  }
  if (!done()) return {};  // any beam may turn out to agree best
  const SearchBlock::Finished& best = block().finished()[ranking(block(), options_).front()];
  return {block().finished_tokens(best.row), best.length};
}

void Search::advance(float* scores, int rows, bool last) {
  const VocabularyView vocabulary = options_.vocabulary ? options_.vocabulary->view() : VocabularyView();
  for (int row = 0; row < rows; ++row) {
    const int32_t* said = block().history(row) + block().context_length;
    float* logits = scores + static_cast<ptrdiff_t>(row) * block().vocab_size;
    if (guide() != nullptr) guide()->apply(said, block().length, logits, scratch_.data());
    if (options_.repeated_words != nullptr) options_.repeated_words->forbid(said, block().length, logits);
  }
  block().advance(reader_, scores, rows, last, vocabulary);
  throw_on_fault(block());
}

}  // namespace blip2rt
