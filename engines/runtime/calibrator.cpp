#include "runtime/calibrator.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "english/statements.h"

namespace blip2rt {
namespace {

using Names = std::vector<std::string>;

void append_weighed(Names& names, const Logistic& regression) {
  for (const auto& weight : regression.weights) names.push_back(weight.first);
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

std::optional<ShortQuestion> Calibrator::short_question(const std::string& question,
                                                        const GenerationOptions& options) const {
  if (!rates_statements_ || options.num_return_sequences > 1 || options.min_new_tokens > 1 ||
      !options.forced_prefix.empty() || !options.bad_words_ids.empty()) {
    return std::nullopt;
  }
  using Kind = ShortQuestion::Kind;
  const bool states = calibration_.statement && computes(*calibration_.statement, true);
  const auto is_unknown = [&](const ShortQuestion& each) {
    return (each.kind == Kind::kNumber && calibration_.numbers.empty()) || (each.kind == Kind::kStatement && !states);
  };
  std::optional<ShortQuestion> found = blip2rt::short_question(question);
  if (found && (is_unknown(*found) || std::any_of(found->statements.begin(), found->statements.end(), is_unknown))) {
    return std::nullopt;
  }
  return found;
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

}  // namespace blip2rt
