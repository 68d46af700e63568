#include "runtime/short_answers.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "base/regex.h"

namespace blip2rt {
namespace {

using Kind = ShortQuestion::Kind;

constexpr double kPriorWeight = 0.5;   // the best of 0, 0.3, 0.5, 0.7 and 1 on COCO's questions
constexpr double kLeastColour = -2.0;  // log-probability of a colour among all that a yes needs, fitted to photographs
constexpr double kLeastLikely = 0.1;   // a choice's probability; if all are below, the answer is "unknown"
constexpr double kNever = 1e6;         // what a choice loses that must not be made
constexpr const char* kNone = "none";  // how many there are

double log_odds(double probability) {
  const double chance = std::clamp(probability, 1e-6, 1 - 1e-6);
  return std::log(chance / (1 - chance));
}

ShortAnswer yes_or_no(double probability) {
  if (probability > 0.5) return {"yes", std::log(probability)};
  return {"no", std::log(1 - probability)};
}

double log_sum(const std::vector<double>& scores) {
  const double best = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (const double each : scores) sum += std::exp(each - best);
  return best + std::log(sum);
}

ShortAnswer likeliest(const std::vector<std::string>& answers, const std::vector<double>& scores) {
  const auto best = std::max_element(scores.begin(), scores.end());
  return {answers.at(static_cast<size_t>(best - scores.begin())), *best - log_sum(scores)};
}

// The texts of all questions, which are measured together.
class Judgement {
 public:
  Judgement(const Calibrator& calibrator, const std::vector<ShortQuestion>& asked, const Measure& measure)
      : calibrator_(calibrator) {
    for (size_t image = 0; image < asked.size(); ++image) add(image, asked[image]);
    std::vector<std::string> texts;
    std::vector<std::vector<std::string>> names;
    std::vector<size_t> images;
    for (auto& [key, signals] : signals_of_) {
      signals.pair = texts.size();
      images.push_back(key.first);
      texts.push_back(key.second);
      names.push_back(signals.names);
    }
    if (texts.empty()) return;
    signals_.emplace(std::move(texts), names, calibrator.calibration().mean_text);
    measure(*signals_, images);
  }

  // The probability of what a question about an image states.
  double chance(size_t image, const ShortQuestion& asked) const {
    return probability(regression_of(asked), [&](const std::string& name) {
      const auto [text, signal] = source_of(name, asked);
      return signals_->at(signal, signals_of_.at({image, text}).pair);
    });
  }

 private:
  struct TextSignals {
    size_t pair;
    std::vector<std::string> names;
  };

  // "cosine" of the subject for "subject_cosine", of the text for "cosine".
  static std::pair<std::string, std::string> source_of(const std::string& name, const ShortQuestion& asked) {
    const bool is_subject = name.compare(0, kSubject.size(), kSubject) == 0;
    return is_subject ? std::pair(asked.subject, name.substr(kSubject.size())) : std::pair(asked.text, name);
  }

  const Logistic& regression_of(const ShortQuestion& asked) const {
    return asked.kind == Kind::kStatement ? *calibrator_.calibration().statement
                                          : calibrator_.regression_of(asked.text);
  }

  void add(size_t image, const ShortQuestion& asked) {
    for (const ShortQuestion& each : asked.statements) add(image, each);
    if (asked.kind != Kind::kPresence && asked.kind != Kind::kStatement) return;
    for (const auto& weight : regression_of(asked).weights) {
      const auto [text, signal] = source_of(weight.first, asked);
      signals_of_[{image, text}].names.push_back(signal);
    }
  }

  const Calibrator& calibrator_;
  std::map<std::pair<size_t, std::string>, TextSignals> signals_of_;
  std::optional<Signals> signals_;
};

// Whether a question asks for a colour or a number of something, or for yes or no. On COCO's dev set, choices that also
// count as statements about the picture raise indoors or outdoors from 78 to 96 %, one of eight objects from 82 to 85
// %; a colour of ten would fall from 41 %.
bool asks_about_part(const std::string& question) {
  static const Regex part(R"((?i:\b(colou?rs?|many|number|letter)\b|^(is|are|was|does|do) ))");
  return part.is_in(question);
}

// Whether a choice says only that no other one fits.
bool leaves_open(const std::string& choice) {
  static const Regex open(
      R"((?i:(an)?others?|something else|nothing|neither|none( of .*)?|n/?a|not (sure|applicable|known|visible)|)"
      R"(un(known|clear|certain|sure|specified|determined|identified)|(can'?t|cannot) (tell|say)))");
  return open.match(choice).has_value();
}

}  // namespace

std::vector<ShortAnswer> short_answers(const Calibrator& calibrator, const std::vector<ShortQuestion>& asked,
                                       const Measure& measure, const ScoreAnswers& score) {
  const Judgement judgement(calibrator, asked, measure);
  const auto answer = [&](size_t image, const ShortQuestion& question) -> ShortAnswer {
    const auto chance = [&](const ShortQuestion& each) { return judgement.chance(image, each); };
    const std::vector<ShortQuestion>& statements = question.statements;
    switch (question.kind) {
      case Kind::kFixed: return {question.text, 0};
      case Kind::kPresence:
      case Kind::kStatement: return yes_or_no(question.negated ? 1 - chance(question) : chance(question));
      case Kind::kColour: {
        const std::vector<double> scores = score(image, question.text, colours());
        const auto at = std::find(colours().begin(), colours().end(), question.choices.at(0)) - colours().begin();
        const double yes = 1 / (1 + std::exp(kLeastColour - scores.at(static_cast<size_t>(at)) + log_sum(scores)));
        return yes_or_no(question.negated ? 1 - yes : yes);
      }
      case Kind::kNumber: {
        const double there = statements.empty() ? 1 : chance(statements[0]);
        if (there <= 0.5) return {kNone, std::log(1 - there)};
        const std::vector<std::string>& numbers = calibrator.calibration().numbers;
        return likeliest(numbers, score(image, question.text, numbers));
      }
      case Kind::kChoice: break;
    }
    // Statements are better judged than generated.
    const size_t each = statements.size() / question.choices.size();
    const bool states = !statements.empty() && (statements[0].kind == Kind::kStatement || each > 1);
    std::vector<double> scores =
        states ? std::vector<double>(question.choices.size()) : score(image, question.text, question.choices);
    for (size_t i = 0; i < statements.size(); ++i) {
      scores.at(i / each) += log_odds(chance(statements[i])) / static_cast<double>(each);
    }
    return likeliest(question.choices, scores);
  };
  std::vector<ShortAnswer> answers;
  for (size_t image = 0; image < asked.size(); ++image) answers.push_back(answer(image, asked[image]));
  return answers;
}

std::vector<double> answer_scores(std::vector<double> given, const std::vector<double>& without) {
  for (size_t i = 0; i < without.size(); ++i) given.at(i) -= kPriorWeight * without[i];
  return given;
}

size_t best_choice(const std::string& question, const std::vector<std::string>& choices, std::vector<double> scores,
                   const std::vector<double>& probabilities) {
  if (!probabilities.empty() && !asks_about_part(question)) {
    // "unknown" is no statement about the picture: it is the answer if no other choice is likely.
    double likeliest = 0;
    for (size_t i = 0; i < scores.size(); ++i) {
      if (!leaves_open(choices.at(i))) likeliest = std::max(likeliest, probabilities.at(i));
    }
    for (size_t i = 0; i < scores.size(); ++i) {
      const bool never = leaves_open(choices[i]) == (likeliest >= kLeastLikely);
      scores[i] += log_odds(probabilities[i]) - (never ? kNever : 0);
    }
  }
  return static_cast<size_t>(std::max_element(scores.begin(), scores.end()) - scores.begin());
}

}  // namespace blip2rt
