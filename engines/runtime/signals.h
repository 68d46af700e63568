// Signals of images and texts, which logistic regressions weigh. Says which graphs must run on which texts, and
// computes with what they give. Knows texts and numbers, no graphs.
//
//     cosine             of the text's embedding and the nearest query's
//     name_cosine        the same of a phrase without its article; query_N: with one query
//     base_cosine        mean over all queries for texts in general: some images are near every text
//     itm                log-odds of the matching head
//     likelihood         log p(text | image) - log p(text)
//     phrase_likelihood  the same of a phrase with its article
//     yes, yes_blind     log p(yes) - log p(no), asked whether it is there, with and without the image
//     words              number of words
//     score              of a generated text: its log-probability per token
//
// Of a statement, such as "a dog is running", `subject_` before a name is the signal of its subject, "a dog".
//
// Labels have others: nearness, their weighed cosines and how often labels like them are named; and told, 1 if the
// image's caption names them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bundle/manifest.h"

namespace blip2rt {

// Begins the names of signals of what a statement is about.
inline const std::string kSubject = "subject_";

// Whether Signals has all that a regression weighs. `of_statement`: a subject's signals, too.
bool computes(const Logistic& regression, bool of_statement = false);

// P of a regression whose signals are `value(name)`.
template <class Value>
double probability(const Logistic& regression, Value value) {
  double total = regression.bias;
  for (const auto& [name, weight] : regression.weights) total += weight * value(name);
  return 1 / (1 + std::exp(-std::clamp(total, -500.0, 500.0)));
}

// What the caller computes for signals, and how many numbers of it: image_embeds (Q x E), text_embeds (E), itm_logits
// (2), likelihoods (1; with the image less without) and yes_odds (2; with the image, and without).
enum class Output { kNone, kImageEmbeds, kTextEmbeds, kItmLogits, kLikelihoods, kYesOdds };

struct Run {
  Output output;
  std::vector<size_t> pairs;       // whose images are read; none for text_embeds
  std::vector<std::string> texts;  // one for each pair; none for image_embeds

  size_t size() const { return texts.empty() ? pairs.size() : texts.size(); }
};

// The signals of B texts and their images. One thread uses it at a time.
class Signals {
 public:
  // `names`: the signals of each text. mean_text (E): what base_cosine compares images with.
  Signals(std::vector<std::string> texts, const std::vector<std::vector<std::string>>& names,
          std::vector<double> mean_text);

  const std::vector<std::string>& texts() const { return texts_; }
  const std::vector<Run>& runs() const { return runs_; }

  // Takes the output of a run, `width` numbers for each of its pairs or texts.
  void add(size_t run, const double* values, size_t width);

  // Sets a signal of each text that no graph gives.
  void set(const std::string& name, std::vector<double> values) { given_[name] = std::move(values); }

  // Throws Error for a query that the images do not have.
  double at(const std::string& name, size_t pair) const;

 private:
  using Values = std::vector<double>;
  const Values& values_of(Output output, size_t pair, const std::string& text) const;
  Values cosines(size_t pair, const Values& text) const;

  const std::vector<std::string> texts_;
  const Values mean_text_;
  std::vector<Run> runs_;
  std::map<std::tuple<Output, size_t, std::string>, Values> outputs_;  // of pairs and texts
  std::map<std::string, Values> given_;
};

}  // namespace blip2rt
