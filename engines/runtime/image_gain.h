// How much likelier an image makes a text, or "yes" as the answer to a question, by the language model. The mean
// prefix_embeds of photographs take the place of no image: without the comparison, short and common texts would win for
// every image (Lin et al. 2024, "Revisiting the Role of Language Priors in Vision-Language Models"). Says what the
// language model must read; knows token ids and numbers, no graphs.
#pragma once

#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace blip2rt {

using TokenIds = std::vector<int64_t>;

// Texts for blip2rt::likelihoods, of the rows that a caller asks for and of those that are new without an image.
struct GainRun {
  std::vector<size_t> prefixes;   // the image of each prompt; the number behind the last image is the mean_prefix
  std::vector<TokenIds> prompts;  // one for each of `prefixes`
  std::vector<size_t> images;     // the prompt of each text
  std::vector<TokenIds> texts;

  std::vector<std::string> keys;               // of the rows in the cache
  std::vector<std::optional<double>> without;  // of the rows; nothing unless it is cached
  std::vector<size_t> new_rows;                // each key once
  bool odds = false;                           // texts come in pairs, whose difference counts
};

// Keeps what was computed without an image. Any thread may use it.
class ImageGain {
 public:
  explicit ImageGain(size_t capacity = 8192) : capacity_(capacity) {}

  // B texts behind one prompt, and the image of each, of `count` images.
  GainRun texts(size_t count, const std::vector<size_t>& images, const TokenIds& prompt,
                const std::vector<TokenIds>& texts) const;

  // B questions, the image of each, and two answers, whose odds are computed. shares: a text may begin with words of
  // the prompt, as in every decoder, so what all questions begin with is read once for each image.
  GainRun questions(size_t count, const std::vector<size_t>& images, const std::vector<TokenIds>& asked,
                    const std::vector<TokenIds>& answers, bool shares) const;

  // The log-probabilities of a run's texts -> values with the image and without (B).
  std::pair<std::vector<double>, std::vector<double>> finish(const GainRun& run, const std::vector<double>& logs);

  size_t size() const;

 private:
  void find_new(GainRun& run) const;

  const size_t capacity_;
  mutable std::mutex mutex_;
  std::unordered_map<std::string, double> without_;
};

}  // namespace blip2rt
