// Signals -> matches and calibrated probabilities, as the manifest of a bundle weighs them; short answers by them.
// Knows numbers, no graphs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bundle/manifest.h"
#include "runtime/signals.h"
#include "search/options.h"

namespace blip2rt {

struct Match {
  double probability;  // that the text is true: calibrated, or `itm` if the bundle is not
  double cosine, score;
  std::optional<double> likelihood;  // if the score weighs it
  double itm;                        // probability of the matching head
};

// Any thread may use it.
class Calibrator {
 public:
  Calibrator(RetrievalSpec weights, std::optional<Calibration> calibration);

  // What the bundle is calibrated for, by signals that this version computes.
  bool rates_statements() const { return rates_statements_; }
  bool rates_captions() const;
  bool rates_labels() const;

  // What a question asks if probabilities answer it, without generating: a phrase or, if the calibration has numbers, a
  // question for one. Empty for other questions, and for options that shape the words of the answer.
  std::string short_question(const std::string& question, const GenerationOptions& options) const;

  // Texts that are matched with images, statements, or captions with their scores -> their signals.
  Signals match_signals(std::vector<std::string> texts) const;
  Signals statement_signals(std::vector<std::string> texts) const;
  Signals caption_signals(std::vector<std::string> texts, std::vector<double> scores) const;

  // Signals whose runs were added -> matches; the probability that each text is true; that each caption is right.
  std::vector<Match> matches(const Signals& signals) const;
  std::vector<double> probabilities(const Signals& signals) const;
  std::vector<double> confidence(const Signals& signals) const;

 private:
  const Logistic& regression_of(const std::string& text) const;

  const RetrievalSpec weights_;
  const Calibration calibration_;
  bool rates_statements_;
};

struct ShortAnswer {
  std::string text;
  double log_probability;
};

// The answer to a question whether something is there, by the probability that it is.
ShortAnswer yes_or_no(double probability);

// log p(answer | image, question) of answers, and log p(answer | question) or nothing -> how likely each is. A part of
// the latter is subtracted.
std::vector<double> answer_scores(std::vector<double> given, const std::vector<double>& without);

// The likeliest of answers, one of which is right.
ShortAnswer likeliest_answer(const std::vector<std::string>& answers, const std::vector<double>& scores);

// The number of the choice that fits a question best, by answer_scores and, unless the question asks about a part of
// the picture, by the probability that each is true of the picture. Without probabilities: empty.
size_t best_choice(const std::string& question, std::vector<double> scores, const std::vector<double>& probabilities);

}  // namespace blip2rt
