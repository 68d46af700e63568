// Guides a search by texts about similar pictures: the language model's probabilities are multiplied by those of an
// n-gram model of these texts (a product of experts, Hinton 2002, with nearest neighbours, as Khandelwal et al. 2020,
// arXiv 1911.00172, mix them), and the finished beam that agrees best with them wins (Devlin et al. 2015, arXiv
// 1505.04467). A guide of an answer only biases its first token. Any thread may use a guide.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace blip2rt {

using TokenText = std::vector<int32_t>;

class Guide {
 public:
  // `texts`: without a stop token; `end` follows each. `rarity` (V): what a token weighs when texts are compared.
  // Throws std::runtime_error for tokens outside the vocabulary.
  Guide(const std::vector<TokenText>& texts, std::shared_ptr<const float> rarity, size_t vocab_size, int32_t end);

  // Of an answer: what is added to the logits of its first token (V).
  explicit Guide(std::vector<float> first_token)
      : vocab_size_(first_token.size()), first_token_(std::move(first_token)) {}

  // Whether finished beams are ranked by their agreement.
  bool ranks() const { return !lengths_.empty(); }

  // Adds to the logits of the token after `count` tokens. scratch: scratch_size() numbers.
  void apply(const int32_t* tokens, int count, float* logits, double* scratch) const;

  // How well a text agrees with the others: the mean cosine of n-grams for n from 1 to 4, with CIDEr-D's penalty for
  // another length (Vedantam et al. 2015, section 5.2).
  double agreement(const int32_t* tokens, size_t count) const;

  // Throws std::runtime_error for tokens outside the vocabulary.
  void check(const TokenText& tokens) const;

  size_t vocab_size() const { return vocab_size_; }
  size_t scratch_size() const { return tokens_.size(); }

 private:
  // Some tokens in a row, in a text.
  struct NGram {
    uint64_t key;
    uint32_t text;
    float weight;  // in a text's vector for this n, which has unit length
  };
  // A token that follows others.
  struct Continuation {
    uint64_t key;  // a hash of the others; in its last kTokenBits, the token's number in tokens_
    double weight;
  };

  std::vector<NGram> grams_of(const int32_t* tokens, size_t count, uint32_t text) const;
  std::vector<double> agreements() const;
  void count_continuations(const std::vector<TokenText>& texts, const std::vector<double>& weights, int32_t end);

  std::shared_ptr<const float> rarity_;
  size_t vocab_size_;
  std::vector<float> first_token_;           // (V), or none
  std::vector<size_t> lengths_;              // of the texts
  std::vector<NGram> grams_;                 // by key
  std::vector<int32_t> tokens_;              // that follow, each once
  std::vector<Continuation> continuations_;  // by key
};

}  // namespace blip2rt
