// Short questions -> their answers, by matching and by how likely each possible answer is. The caller runs the graphs.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "english/questions.h"
#include "runtime/calibrator.h"
#include "runtime/signals.h"

namespace blip2rt {

struct ShortAnswer {
  std::string text;
  double log_probability;
};

// Runs what signals need; text i is matched with image images[i].
using Measure = std::function<void(Signals& signals, const std::vector<size_t>& images)>;

// Returns the answer_scores of answers to a question about an image.
using ScoreAnswers =
    std::function<std::vector<double>(size_t image, const std::string& question, const std::vector<std::string>&)>;

// Answers a question about each image, number i about image i.
std::vector<ShortAnswer> short_answers(const Calibrator& calibrator, const std::vector<ShortQuestion>& asked,
                                       const Measure& measure, const ScoreAnswers& score);

// log p(answer | image, question) of answers, and log p(answer | question) or nothing -> how likely each is. A part of
// the latter is subtracted.
std::vector<double> answer_scores(std::vector<double> given, const std::vector<double>& without);

// The number of the choice that fits a question best, by answer_scores and, unless the question asks about a part of
// the picture, by the probability that each is true of the picture. With these, a choice such as "unknown" or "other"
// is made only if no other choice is likely. Without probabilities: empty.
size_t best_choice(const std::string& question, const std::vector<std::string>& choices, std::vector<double> scores,
                   const std::vector<double>& probabilities);

}  // namespace blip2rt
