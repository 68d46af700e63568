// Counts n-grams of the texts. Texts that agree with the others weigh more, and so do longer contexts (Witten and Bell
// 1991). The constants were chosen on development splits: recipes/nano/LOG.md.
#include "search/guide.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <stdexcept>
#include <string>

namespace blip2rt {
namespace {

constexpr double kStrength = 0.3;         // exponent of the n-gram model
constexpr size_t kContext = 3;            // tokens
constexpr double kNovelty = 0.5;          // how much a context's variety speaks for the shorter one
constexpr double kFloor = 1e-3;           // the probability of a token that never follows
constexpr double kSharpness = 50;         // how fast a text's weight falls with its agreement
constexpr size_t kOrders = 4;             // of n-grams that are compared
constexpr double kLengthVariance = 36.0;  // CIDEr-D
constexpr int32_t kStart = -1;            // stands before a text

uint64_t extended(uint64_t hash, int32_t token) {
  hash = (hash ^ (static_cast<uint32_t>(token) + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9;
  return hash ^ hash >> 29;
}

template <class T>
std::pair<const T*, const T*> range_of(const std::vector<T>& sorted, uint64_t hash, uint64_t T::* key) {
  const auto less = [key](const T& one, uint64_t other) { return one.*key < other; };
  const T* const end = sorted.data() + sorted.size();
  const T* first = std::lower_bound(sorted.data(), end, hash, less);
  const T* last = first;
  while (last != end && last->*key == hash) ++last;
  return {first, last};
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
  std::sort(grams_.begin(), grams_.end(), [](const NGram& a, const NGram& b) { return a.hash < b.hash; });
  std::vector<double> weights;
  for (size_t i = 0; i < texts.size(); ++i) weights.push_back(agreement(texts[i].data(), texts[i].size(), i));
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
    std::map<uint64_t, double> values;
    for (size_t start = 0; start + order <= count; ++start) {
      uint64_t hash = order;
      double rarity = 0;
      for (size_t i = start; i < start + order; ++i) {
        hash = extended(hash, tokens[i]);
        rarity += static_cast<double>(rarity_.get()[tokens[i]]);
      }
      values[hash] += rarity / static_cast<double>(order);
    }
    double squares = 0;
    for (const auto& [hash, value] : values) squares += value * value;
    if (!(squares > 0)) continue;
    for (const auto& [hash, value] : values)
      all.push_back({hash, text, static_cast<float>(value / std::sqrt(squares))});
  }
  return all;
}

double Guide::agreement(const int32_t* tokens, size_t count, size_t except) const {
  std::vector<double> alike(lengths_.size());
  for (size_t i = 0; i < alike.size(); ++i) {
    const double longer = static_cast<double>(count) - static_cast<double>(lengths_[i]);
    alike[i] = i == except ? 0 : std::exp(-longer * longer / (2 * kLengthVariance));
  }
  double total = 0;
  for (const NGram& gram : grams_of(tokens, count, 0)) {
    const auto [first, last] = range_of(grams_, gram.hash, &NGram::hash);
    for (const NGram* other = first; other != last; ++other) {
      total += alike[other->text] * static_cast<double>(gram.value * other->value);
    }
  }
  const size_t others = lengths_.size() - (except < lengths_.size() ? 1 : 0);
  return total / static_cast<double>(kOrders * std::max<size_t>(others, 1));
}

void Guide::count_continuations(const std::vector<TokenText>& texts, const std::vector<double>& weights, int32_t end) {
  std::map<int32_t, uint32_t> numbers;
  std::map<std::pair<uint64_t, uint32_t>, double> counts;
  for (size_t text = 0; text < texts.size(); ++text) {
    TokenText said = {kStart};
    said.insert(said.end(), texts[text].begin(), texts[text].end());
    said.push_back(end);
    for (size_t at = 1; at < said.size(); ++at) {
      const auto [entry, fresh] = numbers.emplace(said[at], static_cast<uint32_t>(numbers.size()));
      if (fresh) tokens_.push_back(said[at]);
      uint64_t hash = 0;
      for (size_t length = 0; length <= std::min(kContext, at); ++length) {
        if (length > 0) hash = extended(hash, said[at - length]);
        counts[{hash, entry->second}] += weights[text];
      }
    }
  }
  for (const auto& [key, weight] : counts) continuations_.push_back({key.first, key.second, weight});
}

void Guide::apply(const int32_t* tokens, int count, float* logits, double* scratch) const {
  std::fill(scratch, scratch + scratch_size(), 0.0);
  uint64_t hash = 0;
  for (int length = 0; length <= std::min(static_cast<int>(kContext), count + 1); ++length) {
    if (length > 0) hash = extended(hash, length > count ? kStart : tokens[count - length]);
    const auto [first, last] = range_of(continuations_, hash, &Continuation::context);
    if (first == last) break;
    double total = 0;
    for (const Continuation* each = first; each != last; ++each) total += each->weight;
    const double trust = length == 0 ? 1 : total / (total + kNovelty * static_cast<double>(last - first));
    for (size_t i = 0; i < scratch_size(); ++i) scratch[i] *= 1 - trust;
    for (const Continuation* each = first; each != last; ++each) scratch[each->token] += trust * each->weight / total;
  }
  for (size_t i = 0; i < scratch_size(); ++i) {
    logits[tokens_[i]] += static_cast<float>(kStrength * std::log1p(scratch[i] / kFloor));
  }
}

}  // namespace blip2rt
