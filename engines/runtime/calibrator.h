// Signals -> matches and calibrated probabilities, as the manifest of a bundle weighs them. Knows numbers, no
// graphs.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bundle/manifest.h"
#include "english/questions.h"
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

  // Reads a question; nothing if its answer must be generated, or if options shape the words of the answer.
  std::optional<ShortQuestion> short_question(const std::string& question, const GenerationOptions& options) const;

  // Texts that are matched with images, statements, or captions with their scores -> their signals.
  Signals match_signals(std::vector<std::string> texts) const;
  Signals statement_signals(std::vector<std::string> texts) const;
  Signals caption_signals(std::vector<std::string> texts, std::vector<double> scores) const;

  // Signals whose runs were added -> matches; the probability that each text is true; that each caption is right.
  std::vector<Match> matches(const Signals& signals) const;
  std::vector<double> probabilities(const Signals& signals) const;
  std::vector<double> confidence(const Signals& signals) const;

  // What weighs a text that is judged as a statement, and all that the manifest says.
  const Logistic& regression_of(const std::string& text) const;
  const Calibration& calibration() const { return calibration_; }

 private:
  const RetrievalSpec weights_;
  const Calibration calibration_;
  bool rates_statements_;
};

}  // namespace blip2rt
