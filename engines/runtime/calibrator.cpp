#include "runtime/calibrator.h"

#include <algorithm>
#include <cmath>
#include <regex>
#include <utility>

#include "language/statements.h"

namespace blip2rt {
namespace {

constexpr double kPriorWeight = 0.5;  // the best of 0, 0.3, 0.5, 0.7 and 1 on COCO's questions

using Names = std::vector<std::string>;

void append_weighed(Names& names, const Logistic& regression) {
  for (const auto& weight : regression.weights) names.push_back(weight.first);
}

// Whether a question asks for a colour or a number of something, or for yes or no. On COCO's dev set, choices that also
// count as statements about the picture raise indoors or outdoors from 78 to 96 %, one of eight objects from 82 to 85
// %; a colour of ten would fall from 41 %.
bool asks_about_part(const std::string& question) {
  static const std::regex part(R"(\b(colou?rs?|many|number|letter)\b|^(is|are|was|does|do) )", std::regex::icase);
  return std::regex_search(question, part);
}

}  // namespace

Calibrator::Calibrator(RetrievalSpec weights, std::optional<Calibration> calibration)
    : weights_(std::move(weights)), calibration_(std::move(calibration).value_or(Calibration{})) {
  rates_statements_ = calibration_.phrase && calibration_.sentence && computes(*calibration_.phrase) &&
                      computes(*calibration_.sentence);
}

bool Calibrator::rates_captions() const { return calibration_.caption && computes(*calibration_.caption); }

bool Calibrator::rates_labels() const {
  if (!rates_statements_ || !calibration_.label) return false;
  const auto& weights = calibration_.label->weights;
  return std::all_of(weights.begin(), weights.end(),
                     [](const auto& weight) { return weight.first == "nearness" || weight.first == "told"; });
}

std::string Calibrator::short_question(const std::string& question, const GenerationOptions& options) const {
  if (!rates_statements_ || options.num_return_sequences > 1 || options.min_new_tokens > 1 ||
      !options.forced_prefix.empty() || !options.bad_words_ids.empty()) {
    return "";
  }
  if (std::optional<std::string> phrase = phrase_of(question)) return *phrase;
  return calibration_.numbers.empty() ? "" : number_question(question).value_or("");
}

const Logistic& Calibrator::regression_of(const std::string& text) const {
  return is_phrase(text) ? *calibration_.phrase : *calibration_.sentence;
}

Signals Calibrator::match_signals(std::vector<std::string> texts) const {
  std::vector<Names> names;
  for (const std::string& text : texts) {
    names.push_back({"itm", "cosine"});
    if (weights_.likelihood_weight != 0) names.back().push_back("likelihood");
    if (rates_statements_) append_weighed(names.back(), regression_of(text));
  }
  return {std::move(texts), names, calibration_.mean_text};
}

Signals Calibrator::statement_signals(std::vector<std::string> texts) const {
  std::vector<Names> names;
  for (const std::string& text : texts) append_weighed(names.emplace_back(), regression_of(text));
  return {std::move(texts), names, calibration_.mean_text};
}

Signals Calibrator::caption_signals(std::vector<std::string> texts, std::vector<double> scores) const {
  Names weighed;
  append_weighed(weighed, *calibration_.caption);
  const std::vector<Names> names(texts.size(), weighed);
  Signals signals(std::move(texts), names, calibration_.mean_text);
  signals.set("score", std::move(scores));
  return signals;
}

std::vector<Match> Calibrator::matches(const Signals& signals) const {
  const std::vector<double> truth = rates_statements_ ? probabilities(signals) : std::vector<double>();
  std::vector<Match> matches;
  for (size_t pair = 0; pair < signals.texts().size(); ++pair) {
    const double log_odds = signals.at("itm", pair), itm = 1 / (1 + std::exp(-log_odds));
    Match match{rates_statements_ ? truth[pair] : itm, signals.at("cosine", pair), 0, std::nullopt, itm};
    match.score = weights_.itm_weight * log_odds + match.cosine / weights_.temperature;
    if (weights_.likelihood_weight != 0) {
      match.likelihood = signals.at("likelihood", pair);
      match.score += weights_.likelihood_weight * *match.likelihood;
    }
    matches.push_back(match);
  }
  return matches;
}

std::vector<double> Calibrator::probabilities(const Signals& signals) const {
  std::vector<double> found;
  for (size_t pair = 0; pair < signals.texts().size(); ++pair) {
    found.push_back(probability(regression_of(signals.texts()[pair]),
                                [&](const std::string& name) { return signals.at(name, pair); }));
  }
  return found;
}

std::vector<double> Calibrator::confidence(const Signals& signals) const {
  std::vector<double> found;
  for (size_t pair = 0; pair < signals.texts().size(); ++pair) {
    found.push_back(
        probability(*calibration_.caption, [&](const std::string& name) { return signals.at(name, pair); }));
  }
  return found;
}

ShortAnswer yes_or_no(double probability) {
  if (probability > 0.5) return {"yes", std::log(probability)};
  return {"no", std::log(1 - probability)};
}

std::vector<double> answer_scores(std::vector<double> given, const std::vector<double>& without) {
  for (size_t i = 0; i < without.size(); ++i) given.at(i) -= kPriorWeight * without[i];
  return given;
}

ShortAnswer likeliest_answer(const std::vector<std::string>& answers, const std::vector<double>& scores) {
  const auto best = std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double each : scores) sum += std::exp(each - *best);
  return {answers.at(static_cast<size_t>(best - scores.begin())), -std::log(sum)};
}

size_t best_choice(const std::string& question, std::vector<double> scores, const std::vector<double>& probabilities) {
  if (!probabilities.empty() && !asks_about_part(question)) {
    for (size_t i = 0; i < scores.size(); ++i) {
      const double chance = std::clamp(probabilities.at(i), 1e-6, 1 - 1e-6);
      scores[i] += std::log(chance / (1 - chance));
    }
  }
  return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

}  // namespace blip2rt
