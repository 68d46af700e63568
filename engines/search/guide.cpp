// Counts n-grams of the texts. Texts that agree with the others weigh more, and so do longer contexts (Witten and Bell
// 1991). The constants were chosen on development splits: recipes/nano/LOG.md.
#include "search/guide.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <stdexcept>
#include <string>

namespace blip2rt {
namespace {

constexpr double kStrength = 0.2;         // exponent of the n-gram model
constexpr size_t kContext = 3;            // tokens
constexpr double kNovelty = 0.5;          // how much a context's variety speaks for the shorter one
constexpr double kFloor = 1e-3;           // the probability of a token that never follows
constexpr double kSharpness = 50;         // how fast a text's weight falls with its agreement
constexpr size_t kOrders = 4;             // of n-grams that are compared
constexpr double kLengthVariance = 36.0;  // CIDEr-D
constexpr int32_t kStart = -1;            // stands before a text
constexpr int kTokenBits = 20;            // of a continuation's key
constexpr uint64_t kTokenMask = (uint64_t{1} << kTokenBits) - 1;

uint64_t extended(uint64_t hash, int32_t token) {
  hash = (hash ^ (static_cast<uint32_t>(token) + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9;
  return hash ^ hash >> 29;
}

// Returns those with keys from `low` to `high`.
template <class T>
std::pair<const T*, const T*> range_of(const std::vector<T>& sorted, uint64_t low, uint64_t high) {
  const T* const end = sorted.data() + sorted.size();
  const T* first = std::lower_bound(sorted.data(), end, low, [](const T& one, uint64_t key) { return one.key < key; });
  const T* last = first;
  while (last != end && last->key <= high) ++last;
  return {first, last};
}

template <class T>
void sort_by_key(std::vector<T>& all, size_t first) {
  std::sort(all.begin() + static_cast<ptrdiff_t>(first), all.end(),
            [](const T& a, const T& b) { return a.key < b.key; });
}

// Sorts those from number `first` on, and adds up the weights of equal keys.
template <class T>
void merge(std::vector<T>& all, size_t first) {
  sort_by_key(all, first);
  size_t last = first;
  for (size_t i = first; i < all.size(); ++i) {
    if (last > first && all[last - 1].key == all[i].key) {
      all[last - 1].weight += all[i].weight;
    } else {
      all[last++] = all[i];
    }
  }
  all.resize(last);
}

// CIDEr-D's factor for texts of different lengths.
double likeness(size_t length, size_t other) {
  const double longer = static_cast<double>(length) - static_cast<double>(other);
  return std::exp(-longer * longer / (2 * kLengthVariance));
}

}  // namespace

Guide::Guide(const std::vector<TokenText>& texts, std::shared_ptr<const float> rarity, size_t vocab_size, int32_t end)
    : rarity_(std::move(rarity)), vocab_size_(vocab_size) {
  check({end});
  for (const TokenText& text : texts) {
    check(text);
    const std::vector<NGram> grams = grams_of(text.data(), text.size(), static_cast<uint32_t>(lengths_.size()));
    grams_.insert(grams_.end(), grams.begin(), grams.end());
    lengths_.push_back(text.size());
  }
  sort_by_key(grams_, 0);
  std::vector<double> weights = agreements();
  const double best = weights.empty() ? 0 : *std::max_element(weights.begin(), weights.end());
  for (double& weight : weights) weight = std::exp(kSharpness * (weight - best));
  count_continuations(texts, weights, end);
}

void Guide::check(const TokenText& tokens) const {
  const auto outside = [this](int32_t token) { return token < 0 || static_cast<size_t>(token) >= vocab_size_; };
  if (!std::any_of(tokens.begin(), tokens.end(), outside)) return;
  throw std::runtime_error("a guiding text has tokens outside the vocabulary of " + std::to_string(vocab_size_));
}

// A vector of unit length for each n: what an n-gram weighs is the mean of its tokens' rarities.
std::vector<Guide::NGram> Guide::grams_of(const int32_t* tokens, size_t count, uint32_t text) const {
  std::vector<NGram> all;
  for (size_t order = 1; order <= std::min(kOrders, count); ++order) {
    const size_t first = all.size();
    for (size_t start = 0; start + order <= count; ++start) {
      NGram gram = {order, text, 0};
      for (size_t i = start; i < start + order; ++i) {
        gram.key = extended(gram.key, tokens[i]);
        gram.weight += rarity_.get()[tokens[i]] / static_cast<float>(order);
      }
      all.push_back(gram);
    }
    merge(all, first);
    double squares = 0;
    for (size_t i = first; i < all.size(); ++i) squares += static_cast<double>(all[i].weight * all[i].weight);
    if (!(squares > 0)) all.resize(first);
    for (size_t i = first; i < all.size(); ++i) all[i].weight /= static_cast<float>(std::sqrt(squares));
  }
  return all;
}

double Guide::agreement(const int32_t* tokens, size_t count) const {
  if (!ranks()) return 0;
  std::vector<double> factors;
  for (const size_t length : lengths_) factors.push_back(likeness(count, length));
  double total = 0;
  for (const NGram& gram : grams_of(tokens, count, 0)) {
    const auto [first, last] = range_of(grams_, gram.key, gram.key);
    for (const NGram* other = first; other != last; ++other) {
      total += factors[other->text] * static_cast<double>(gram.weight * other->weight);
    }
  }
  return total / static_cast<double>(kOrders * std::max<size_t>(lengths_.size(), 1));
}

// How well each of the texts agrees with the others.
std::vector<double> Guide::agreements() const {
  std::vector<double> all(lengths_.size()), factors;  // by the difference of lengths
  const size_t longest = lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
  for (size_t i = 0; i <= longest; ++i) factors.push_back(likeness(i, 0));
  const auto end = grams_.end();
  for (auto first = grams_.begin(); first != end; ++first) {
    for (auto other = first + 1; other != end && other->key == first->key; ++other) {
      const auto [shorter, longer] = std::minmax(lengths_[first->text], lengths_[other->text]);
      const double product = factors[longer - shorter] * static_cast<double>(first->weight * other->weight);
      all[first->text] += product;
      all[other->text] += product;
    }
  }
  for (double& each : all) each /= static_cast<double>(kOrders * std::max<size_t>(all.size() - 1, 1));
  return all;
}

void Guide::count_continuations(const std::vector<TokenText>& texts, const std::vector<double>& weights, int32_t end) {
  tokens_.assign(1, end);
  for (const TokenText& text : texts) tokens_.insert(tokens_.end(), text.begin(), text.end());
  std::sort(tokens_.begin(), tokens_.end());
  tokens_.erase(std::unique(tokens_.begin(), tokens_.end()), tokens_.end());
  TokenText said;
  for (size_t text = 0; text < texts.size(); ++text) {
    said.assign(1, kStart);
    said.insert(said.end(), texts[text].begin(), texts[text].end());
    said.push_back(end);
    for (size_t at = 1; at < said.size(); ++at) {
      const auto token = std::lower_bound(tokens_.begin(), tokens_.end(), said[at]) - tokens_.begin();
      uint64_t hash = 0;
      for (size_t length = 0; length <= std::min(kContext, at); ++length) {
        if (length > 0) hash = extended(hash, said[at - length]);
        continuations_.push_back({hash << kTokenBits | static_cast<uint64_t>(token), weights[text]});
      }
    }
  }
  merge(continuations_, 0);
}

void Guide::apply(const int32_t* tokens, int count, float* logits, double* scratch) const {
  if (count == 0) std::transform(first_token_.begin(), first_token_.end(), logits, logits, std::plus<>());
  if (!ranks()) return;
  std::fill(scratch, scratch + scratch_size(), 0.0);
  uint64_t hash = 0;
  for (int length = 0; length <= std::min(static_cast<int>(kContext), count + 1); ++length) {
    if (length > 0) hash = extended(hash, length > count ? kStart : tokens[count - length]);
    const uint64_t context = hash << kTokenBits;
    const auto [first, last] = range_of(continuations_, context, context | kTokenMask);
    if (first == last) break;
    double total = 0;
    for (const Continuation* each = first; each != last; ++each) total += each->weight;
    const double trust = length == 0 ? 1 : total / (total + kNovelty * static_cast<double>(last - first));
    for (size_t i = 0; i < scratch_size(); ++i) scratch[i] *= 1 - trust;
    for (const Continuation* each = first; each != last; ++each) {
      scratch[each->key & kTokenMask] += trust * each->weight / total;
    }
  }
  for (size_t i = 0; i < scratch_size(); ++i) {
    logits[tokens_[i]] += static_cast<float>(kStrength * std::log1p(scratch[i] / kFloor));
  }
}

}  // namespace blip2rt
