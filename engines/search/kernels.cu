// The generation loop's GPU kernels: they write keys and values into the cache, choose tokens, and move beams. NVRTC
// compiles this source. A C++ compiler can too, with macros for threadIdx and the like
// (tests/engines/native/kernels_cpu.cpp).
//
// The slots [0, positions[row]) of a row's cache are filled. docs/inside/bundle.md, "The target trt", describes them.
#include "search/search_block.h"

using namespace blip2rt;

// Parameters that the host sets once per generation. They are in device memory, so that a captured graph needs no new
// arguments.
struct GenerationParameters {
  int64_t vocabulary_ends, vocabulary_bytes;  // addresses, 0 without stop strings
  int64_t blocks;                             // address of the answers' search blocks
  int64_t draw_rows, weights, block_sums;     // addresses of each answer's Sampler, 0 without sampling
  int32_t stride;                             // bytes of a search block
  int32_t beams;                              // rows per answer
  int32_t last;                               // 1: the next step is the last one
};

namespace {

constexpr int kMaxThreads = 1024;
constexpr float kMinExponent = -87.33654f;  // as in scoring.h: every token that may be drawn has a positive weight

// The Reader for a block of threads. It uses the graph's results for the row (its K likeliest tokens and the log of the
// sum of exponentials), and reads the row itself only if options changed it or need more tokens.
class TeamReader {
 public:
  // `scores`: the answer's first row. From the graph: top_logits and top_tokens (rows, k), log_sum_exp (rows).
  TeamReader(SearchBlock& block, const Sampler& sampler, const float* scores, const float* top_logits,
             const int64_t* top_tokens, const float* log_sum_exp, int k, double* shared)
      : block_(block),
        sampler_(sampler),
        scores_(scores),
        all_top_logits_(top_logits),
        all_top_tokens_(top_tokens),
        log_sum_exp_(log_sum_exp),
        k_(k),
        shared_(shared),
        vocab_size_(block.vocab_size) {}

  bool leader() const { return threadIdx.x == 0; }
  void sync() const { __syncthreads(); }
  const Sampler& sampler() const { return sampler_; }
  float largest() const { return largest_; }
  float log_sum() const { return log_sum_; }

  void measure(const float* scores) {
    const int row = static_cast<int>((scores - scores_) / vocab_size_);
    const bool fresh = row != row_;
    row_ = row;
    top_logits_ = all_top_logits_ + static_cast<int64_t>(row) * k_;
    top_tokens_ = all_top_tokens_ + static_cast<int64_t>(row) * k_;
    if (fresh) list_floor_ = top_logits_[k_ - 1];
    from_graph_ =
        fresh && !(block_.num_beams == 1 && block_.edits_logits());  // beams are measured before logits processing
    if (from_graph_) {
      largest_ = top_logits_[0];
      log_sum_ = log_sum_exp_[row] - largest_;
    } else {
      float most = forbidden();
      for (int i = rank(); i < vocab_size_; i += size()) most = larger_of(most, scores[i]);
      largest_ = static_cast<float>(reduce(most, [](double a, double b) { return a < b ? b : a; }));
      double sum = 0;
      for (int i = rank(); i < vocab_size_; i += size()) sum += expf(scores[i] - largest_);
      sum = reduce(sum, [](double a, double b) { return a + b; });
      log_sum_ = static_cast<float>(log(sum));
    }
    const bool all_forbidden = largest_ == forbidden();
    if (!isfinite(log_sum_) && !all_forbidden && leader()) block_.fault = Fault::kNotFinite;
    sync();  // no thread may change the block before all have read it
  }

  int argmax(const float* scores) {
    // The graph's list has ties in any order, and may omit some.
    const bool listed = k_ == vocab_size_ || top_logits_[k_ - 1] < top_logits_[0];
    if (!from_graph_ || !listed) return best_after([&](int i) { return scores[i]; }, infinity(), kNoToken);
    auto first = static_cast<int>(top_tokens_[0]);
    for (int i = 1; i < k_ && top_logits_[i] == top_logits_[0]; ++i) {
      first = smaller_of(first, static_cast<int>(top_tokens_[i]));
    }
    return first;
  }

  void normalise(float* scores) {
    for (int i = rank(); i < vocab_size_; i += size()) scores[i] = scores[i] - largest_ - log_sum_;
    list_floor_ = list_floor_ - largest_ - log_sum_;
    largest_ = log_sum_ = 0;
    sync();
  }
  void remeasure(const float*) {}

  void offer(const float* scores, float base, int row, SearchBlock& block) {
    const auto offered = [&](int token) { return base + (scores[token] - largest_ - log_sum_); };
    bool whole = block.penalty < 1;  // a penalty below 1 may lift a token above those of the list
    if (!whole) {
      rank_list([](int a, int b) { return a < b; });  // the smaller of two tied tokens is offered first
      if (leader()) {
        for (int place = 0; place < k_; ++place) block.offer({offered(listed(place)), row, listed(place)});
      }
      sync();
      // Scores outside the list are at most that of its last token. A tied one may have a smaller token.
      const float most = base + (list_floor_ - largest_ - log_sum_);
      const Candidate* last = block.best() + block.best_count - 1;
      whole = k_ < vocab_size_ && (block.accepts(most) || (last->row == row && last->score == most));
      sync();
    }
    if (!whole) return;
    if (leader()) remove_row(row, block);
    float score = infinity();
    int token = kNoToken;
    for (int i = 0; i < block.num_candidates; ++i) {
      token = best_after(offered, score, token);
      if (token == kNoToken) break;
      score = offered(token);
      if (leader()) block.offer({score, row, token});
    }
    sync();
  }

  Bound top_k_bound(const float* scores, int n) {
    Bound bound;
    if (n > vocab_size_) return bound;
    if (from_graph_ && n <= k_) {
      bound.score = top_logits_[n - 1];
      return bound;
    }
    const auto enough = [&](uint32_t key) { return count_from(scores, key) >= n; };
    const uint32_t key = largest_key(enough);
    if (key > key_of(forbidden())) bound.score = score_of(key);
    return bound;
  }

  Bound nucleus(const float* scores, int row, double p, Bound within, int& kept) {
    const double wanted = p * weigh(scores, row, within);
    const float* weights = sampler_.row_weights(row);
    Bound found;
    kept = listed_nucleus(scores, weights, wanted, found);
    if (kept > 0) return found;
    // Sums the weights of larger scores, and of ties up to a token.
    const auto weight_from = [&](uint32_t key, int last_equal) {
      double sum = 0;
      for (int i = rank(); i < vocab_size_; i += size()) {
        const uint32_t own = key_of(scores[i]);
        if (own > key || (own == key && i <= last_equal)) sum += weighs(scores[i], i, within) ? weights[i] : 0;
      }
      return reduce(sum, [](double a, double b) { return a + b; });
    };
    const auto enough = [&](uint32_t from, int last_equal) {
      const double sum = weight_from(from, last_equal);
      return sum > 0 && sum >= wanted;
    };
    const uint32_t key = largest_key([&](uint32_t from) { return enough(from, kNoToken); });
    if (key <= key_of(forbidden())) {  // rounding: even all tokens are not enough
      kept = vocab_size_;
      return within;
    }
    int low = -1, high = vocab_size_ - 1;  // the first tied token that reaches the weight
    while (high - low > 1) {
      const int middle = low + (high - low) / 2;
      if (enough(key, middle)) {
        high = middle;
      } else {
        low = middle;
      }
    }
    kept = count_from(scores, key + 1);
    int equals = 0;
    for (int i = rank(); i <= high; i += size()) equals += key_of(scores[i]) == key;
    kept += static_cast<int>(reduce(equals, [](double a, double b) { return a + b; }));
    Bound bound;
    bound.score = score_of(key);
    bound.token = high;
    return bound;
  }

  double weigh(const float* scores, int row, Bound bound) {
    float* weights = sampler_.row_weights(row);
    double* sums = sampler_.row_sums(row);
    double total = 0;
    for (int block = rank(); block < Sampler::blocks(vocab_size_); block += size()) {
      const int first = block * Sampler::kBlock, end = smaller_of(vocab_size_, first + Sampler::kBlock);
      double sum = 0;
      for (int i = first; i < end; ++i) {
        const float exponent = larger_of((scores[i] - largest_) * sampler_.scale, kMinExponent);
        weights[i] = weighs(scores[i], i, bound) ? expf(exponent) : 0.0f;
        sum += weights[i];
      }
      sums[block] = sum;
      total += sum;
    }
    return reduce(total, [](double a, double b) { return a + b; });
  }

 private:
  static int rank() { return static_cast<int>(threadIdx.x); }
  static int size() { return static_cast<int>(blockDim.x); }

  static bool weighs(float score, int token, Bound bound) {
    return score > bound.score || (score == bound.score && token <= bound.token);
  }

  // Maps floats to integers with the same order.
  static uint32_t key_of(float score) {
    const float plain = score + 0.0f;  // turns -0 into 0
    uint32_t bits;
    memcpy(&bits, &plain, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  }
  static float score_of(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float score;
    memcpy(&score, &bits, sizeof score);
    return score;
  }

  // Returns the largest key for which `predicate` is true, assuming that it is false for all larger keys.
  template <class Predicate>
  static uint32_t largest_key(Predicate predicate) {
    uint32_t key = 0;
    for (uint32_t bit = 0x80000000u; bit != 0; bit >>= 1) {
      if (predicate(key | bit)) key |= bit;
    }
    return key;
  }

  int count_from(const float* scores, uint32_t key) {
    int count = 0;
    for (int i = rank(); i < vocab_size_; i += size()) count += key_of(scores[i]) >= key;
    return static_cast<int>(reduce(count, [](double a, double b) { return a + b; }));
  }

  // Sorts the list's tokens by `before` into shared memory, where listed() reads them until the next reduce().
  template <class Before>
  void rank_list(Before before) {
    for (int i = rank(); i < k_; i += size())
      shared_[i] = static_cast<double>(top_tokens_[i]);  // default for NaN, which has no order
    sync();
    for (int i = rank(); i < k_; i += size()) {
      const auto token = static_cast<int>(top_tokens_[i]);
      int place = 0;
      for (int other = 0; other < k_; ++other) place += before(static_cast<int>(top_tokens_[other]), token) ? 1 : 0;
      shared_[place] = token;
    }
    sync();
  }
  int listed(int place) const { return static_cast<int>(shared_[place]); }

  // Searches for the nucleus in the list alone. Returns its number of tokens and its bound, or 0 if the list does not
  // cover it.
  int listed_nucleus(const float* scores, const float* weights, double wanted, Bound& bound) {
    if (block_.penalty < 1) return 0;  // it may lift a token above those of the list
    rank_list([&](int a, int b) { return scores[a] > scores[b] || (scores[a] == scores[b] && a < b); });
    if (leader()) {
      double sum = 0;
      int count = 0, last = kNoToken;
      for (int place = 0; place < k_ && count == 0; ++place) {
        last = listed(place);
        if (k_ < vocab_size_ && !(scores[last] > list_floor_)) break;  // one outside the list may precede it
        sum += weights[last];
        if (sum > 0 && sum >= wanted) count = place + 1;
      }
      shared_[0] = count;
      shared_[1] = last;
    }
    sync();
    const int count = listed(0), last = listed(1);
    sync();
    if (count > 0) bound = {scores[last], last};
    return count;
  }

  // Returns the likeliest token after (score, token) by score_of_token(token), or kNoToken if none is left. The smaller
  // of two tied tokens comes first.
  template <class Score>
  int best_after(Score score_of_token, float score, int token) {
    float best = forbidden();
    int found = kNoToken;
    for (int i = rank(); i < vocab_size_; i += size()) {
      const float own = score_of_token(i);
      const bool after = token == kNoToken || own < score || (own == score && i > token);
      if (after && (found == kNoToken || own > best)) {
        best = own;
        found = i;
      }
    }
    const double most =
        reduce(found == kNoToken ? -infinity() : best, [](double a, double b) { return a < b ? b : a; });
    const double first =
        reduce(found != kNoToken && best == most ? found : kNoToken, [](double a, double b) { return b < a ? b : a; });
    return static_cast<int>(first);
  }

  // Removes a row's candidates from the block's list.
  static void remove_row(int row, SearchBlock& block) {
    auto* items = block.at<Candidate>(block.best_at);
    int kept = 0;
    for (int i = 0; i < block.best_count; ++i) {
      if (items[i].row != row) items[kept++] = items[i];
    }
    block.best_count = kept;
  }

  // Reduces the values of all threads, and returns the result to each.
  template <class Join>
  double reduce(double own, Join join) {
    shared_[rank()] = own;
    sync();
    for (int width = size(); width > 1;) {
      const int half = (width + 1) / 2;
      if (rank() + half < width) shared_[rank()] = join(shared_[rank()], shared_[rank() + half]);
      width = half;
      sync();
    }
    const double joined = shared_[0];
    sync();
    return joined;
  }

  SearchBlock& block_;
  const Sampler& sampler_;
  const float *scores_, *all_top_logits_;
  const int64_t* all_top_tokens_;
  const float* log_sum_exp_;
  int k_;
  double* shared_;
  int vocab_size_;
  const float* top_logits_ = nullptr;
  const int64_t* top_tokens_ = nullptr;
  float largest_ = 0, log_sum_ = 0;
  float list_floor_ = 0;  // no token outside the list scored higher
  int row_ = -1;
  bool from_graph_ = false;  // the measured values come from the graph
};

}  // namespace

// Appends new keys and values to the cache, and unmasks their positions.
//
// fresh holds tensors (source rows, heads, length, width), `fresh_stride` words apart; cache holds tensors
// (rows, heads, capacity, width), `cache_stride` words apart; a word is 4 bytes. Row r copies positions 0 to
// last_index[source] of row source = sources[r] of `fresh` to the slots from positions[r] on. If sources is null,
// source is r; if last_index or positions is null, it counts as 0. Grid: rows x tensors.
extern "C" __global__ void scatter(const uint32_t* fresh, uint32_t* cache, float* mask, const int32_t* sources,
                                   const int64_t* last_index, const int64_t* positions, int64_t fresh_stride,
                                   int64_t cache_stride, int heads, int length, int capacity, int width) {
  const int row = static_cast<int>(blockIdx.x), tensor = static_cast<int>(blockIdx.y);
  const int source = sources == nullptr ? row : sources[row];
  const int count = last_index == nullptr ? 1 : static_cast<int>(last_index[source]) + 1;
  const int start = positions == nullptr ? 0 : static_cast<int>(positions[row]);
  const uint32_t* from = fresh + tensor * fresh_stride + static_cast<int64_t>(source) * heads * length * width;
  uint32_t* to = cache + tensor * cache_stride + static_cast<int64_t>(row) * heads * capacity * width;
  const int words = count * width;
  for (int i = static_cast<int>(threadIdx.x); i < heads * words; i += static_cast<int>(blockDim.x)) {
    const int head = i / words, within = i % words;
    const int64_t from_head = static_cast<int64_t>(head) * length * width;
    const int64_t to_head = (static_cast<int64_t>(head) * capacity + start) * width;
    to[to_head + within] = from[from_head + within];
  }
  if (tensor > 0) return;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    mask[static_cast<int64_t>(row) * capacity + start + i] = 0;
  }
}

// Takes one step of every answer's search. Answer a owns the rows [a * beams, (a + 1) * beams) of logits (rows, V),
// tokens (rows) and positions (rows). In the first step, answer a starts from row images[a] of `prompt_logits` and of
// the top tensors; later `images` is null. done (answers) marks finished answers. Grid: answers.
extern "C" __global__ void choose(const GenerationParameters* plan, float* logits, const float* prompt_logits,
                                  const int32_t* images, const float* top_logits, const int64_t* top_tokens,
                                  const float* log_sum_exp, const int32_t* prompt_lengths, int64_t* tokens,
                                  int64_t* positions, int32_t* parents, int32_t* done, int k) {
  __shared__ double shared[kMaxThreads];
  const int answer = static_cast<int>(blockIdx.x), beams = plan->beams, first_row = answer * beams;
  SearchBlock& block = *reinterpret_cast<SearchBlock*>(plan->blocks + static_cast<int64_t>(answer) * plan->stride);
  if (block.done) {  // the graph still computes its rows, without effect
    for (int i = static_cast<int>(threadIdx.x); i < beams; i += static_cast<int>(blockDim.x)) {
      parents[first_row + i] = first_row + i;
    }
    return;
  }
  const int vocab_size = block.vocab_size;
  float* scores = logits + static_cast<int64_t>(first_row) * vocab_size;
  if (images != nullptr) {
    const float* from = prompt_logits + static_cast<int64_t>(images[answer]) * vocab_size;
    for (int i = static_cast<int>(threadIdx.x); i < vocab_size; i += static_cast<int>(blockDim.x)) scores[i] = from[i];
  }
  Sampler sampler = {vocab_size, block.scale, nullptr, nullptr, nullptr};
  if (block.do_sample) {
    sampler.rows = reinterpret_cast<SampledRow*>(plan->draw_rows) + first_row;
    sampler.weights = reinterpret_cast<float*>(plan->weights) + static_cast<int64_t>(first_row) * vocab_size;
    sampler.block_sums =
        reinterpret_cast<double*>(plan->block_sums) + static_cast<int64_t>(first_row) * Sampler::blocks(vocab_size);
  }
  const VocabularyView vocabulary = {reinterpret_cast<const uint64_t*>(plan->vocabulary_ends),
                                     reinterpret_cast<const char*>(plan->vocabulary_bytes)};
  __syncthreads();
  const int64_t top_row = images == nullptr ? first_row : images[answer];
  TeamReader reader(block, sampler, scores, top_logits + top_row * k, top_tokens + top_row * k, log_sum_exp + top_row,
                    k, shared);
  block.advance(reader, scores, images == nullptr ? beams : 1, plan->last != 0, vocabulary);
  for (int i = static_cast<int>(threadIdx.x); i < beams; i += static_cast<int>(blockDim.x)) {
    const int row = first_row + i;
    tokens[row] = block.tokens()[i];
    parents[row] = first_row + block.parents()[i];
    positions[row] = images == nullptr ? positions[row] + (block.done ? 0 : 1) : prompt_lengths[answer];
  }
  if (threadIdx.x == 0) done[answer] = block.done;
}

// Copies the generated positions [prompt length, positions[row]) from each row's parent to the row. A parent is never
// overwritten, see SearchBlock::parents. Grid: rows x tensors.
extern "C" __global__ void reorder(const GenerationParameters* plan, uint32_t* cache, const int32_t* parents,
                                   const int32_t* prompt_lengths, const int64_t* positions, int64_t cache_stride,
                                   int heads, int capacity, int width) {
  const int row = static_cast<int>(blockIdx.x), tensor = static_cast<int>(blockIdx.y), parent = parents[row];
  if (parent == row) return;
  const int begin = prompt_lengths[row / plan->beams], words = (static_cast<int>(positions[row]) - begin) * width;
  const int64_t row_size = static_cast<int64_t>(heads) * capacity * width;
  const uint32_t* from = cache + tensor * cache_stride + parent * row_size;
  uint32_t* to = cache + tensor * cache_stride + row * row_size;
  for (int i = static_cast<int>(threadIdx.x); i < heads * words; i += static_cast<int>(blockDim.x)) {
    const int64_t place = (static_cast<int64_t>(i / words) * capacity + begin) * width + i % words;
    to[place] = from[place];
  }
}

// Copies row sources[r] of `from` to row r of `to`, for tensors that are `from_stride` and `to_stride` words apart. A
// row has `words` words. Grid: rows x tensors.
extern "C" __global__ void spread(const uint32_t* from, uint32_t* to, const int32_t* sources, int64_t from_stride,
                                  int64_t to_stride, int words) {
  const int64_t row = blockIdx.x, tensor = blockIdx.y;
  const uint32_t* source = from + tensor * from_stride + static_cast<int64_t>(sources[row]) * words;
  uint32_t* target = to + tensor * to_stride + row * words;
  for (int i = static_cast<int>(threadIdx.x); i < words; i += static_cast<int>(blockDim.x)) target[i] = source[i];
}
