// Matches: what the graphs say about an image and a text, and the calibrated probability that the text is true.
// Questions whether something is there are answered by it. The counterpart of blip2rt.matching.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <utility>

#include "model/model.h"
#include "model/statements.h"
#include "model/text_forms.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxCached = 8192;
constexpr double kPriorWeight = 0.5;           // of an answer's likelihood without the image
constexpr std::string_view kQuery = "query_";  // with a number: the cosine with one query

// Whether this version knows all signals that a regression weighs.
bool computes(const Logistic& regression) {
  static const std::vector<std::string> known = {
      "cosine", "itm", "likelihood", "name_cosine", "base_cosine", "phrase_likelihood", "yes", "yes_blind", "words"};
  return std::all_of(regression.weights.begin(), regression.weights.end(), [](const auto& weight) {
    return std::find(known.begin(), known.end(), weight.first) != known.end() ||
           weight.first.compare(0, kQuery.size(), kQuery) == 0;
  });
}

}  // namespace

// Those of one image and one text. Each is computed by its first lookup.
class Signals {
 public:
  Signals(Model& model, Features& features, const std::string& text)
      : model_(model), features_(features), text_(text) {}

  double operator[](const std::string& name) {
    const auto found = values_.find(name);
    if (found != values_.end()) return found->second;
    if (name == "itm") return values_[name] = model_.itm_log_odds(features_, text_);
    if (name == "words") return values_[name] = static_cast<double>(words_of(text_).size());
    if (name == "cosine") {
      const std::vector<float> cosines = this->cosines(model_.embed_text(text_).values);
      return values_[name] = static_cast<double>(*std::max_element(cosines.begin(), cosines.end()));
    }
    if (name == "base_cosine") return values_[name] = base_cosine();
    if (name == "likelihood" || name == "phrase_likelihood") {
      const std::string text = name == "likelihood" ? text_ : with_article(text_);
      if (text == text_ && name != "likelihood") return values_[name] = (*this)["likelihood"];
      const auto [given, without] = model_.likelihood(features_, text);
      return values_[name] = given - without;
    }
    if (name == "yes" || name == "yes_blind") {
      std::tie(values_["yes"], values_["yes_blind"]) = model_.yes_odds(features_, question_of(with_article(text_)));
      return values_[name];
    }
    const std::string phrase = is_phrase(text_) ? without_article(text_) : text_;  // name_cosine, or one query's
    const std::vector<float> cosines = this->cosines(model_.embed_text(phrase).values);
    values_["name_cosine"] = static_cast<double>(*std::max_element(cosines.begin(), cosines.end()));
    for (size_t i = 0; i < cosines.size(); ++i) {
      values_[std::string(kQuery) + std::to_string(i)] = static_cast<double>(cosines[i]);
    }
    const auto query = values_.find(name);
    if (query != values_.end()) return query->second;
    throw Error(ErrorKind::kModel, "the bundle's calibration weighs " + name + ", which its graphs do not have");
  }

 private:
  // With each query of the image.
  template <class Number>
  std::vector<Number> cosines(const std::vector<Number>& text) {
    if (queries_.values.empty()) queries_ = model_.embed_image(features_);
    const size_t width = text.size();
    if (width == 0 || queries_.values.empty() || queries_.values.size() % width != 0) {
      throw Error(ErrorKind::kBackend, "the embeddings of images and texts differ in width");
    }
    std::vector<Number> products;
    for (size_t query = 0; query < queries_.values.size(); query += width) {
      Number product = 0;
      for (size_t i = 0; i < width; ++i) product += static_cast<Number>(queries_.values[query + i]) * text[i];
      products.push_back(product);
    }
    return products;
  }

  double base_cosine() {
    const std::vector<double> each = cosines(model_.bundle_.manifest.calibration->mean_text);
    double sum = 0;
    for (const double cosine : each) sum += cosine;
    return sum / static_cast<double>(each.size());
  }

  Model& model_;
  Features& features_;
  const std::string& text_;
  Tensor queries_;  // (1, Q, E)
  std::map<std::string, double> values_;
};

Match Model::match(Features& features, const std::string& text) {
  bundle_.require(kRetrieval, "match");
  require_own(features.model, "the features are");
  check_text(text);
  if (!has_words(text)) {
    throw Error(ErrorKind::kArgument, "a text has no words: say what the image may show, as in 'a dog on grass'");
  }
  const RetrievalSpec& spec = *bundle_.manifest.retrieval;
  Signals signals(*this, features, text);
  const double log_odds = signals["itm"], cosine = signals["cosine"];
  Match match{1 / (1 + std::exp(-log_odds)), cosine, spec.itm_weight * log_odds + cosine / spec.temperature};
  if (spec.likelihood_weight != 0) match.score += spec.likelihood_weight * signals["likelihood"];
  if (is_calibrated()) match.probability = probability(signals, text);
  return match;
}

bool Model::is_calibrated() const {
  const std::optional<Calibration>& calibration = bundle_.manifest.calibration;
  return calibration && calibration->phrase && calibration->sentence && computes(*calibration->phrase) &&
         computes(*calibration->sentence);
}

double Model::probability(Signals& signals, const std::string& text) const {
  const Calibration& calibration = *bundle_.manifest.calibration;
  const Logistic& regression = is_phrase(text) ? *calibration.phrase : *calibration.sentence;
  double total = regression.bias;
  for (const auto& [name, weight] : regression.weights) total += weight * signals[name];
  return 1 / (1 + std::exp(-std::clamp(total, -500.0, 500.0)));
}

// The answer to a question whether something is there, or how many; its score is its log-probability.
std::optional<Text> Model::judged(Features& features, const std::string& question, const GenerationOptions& options) {
  if (!bundle_.manifest.retrieval || !is_calibrated() || options.num_return_sequences > 1 ||
      options.min_new_tokens > 1 || !options.forced_prefix.empty() || !options.bad_words_ids.empty()) {
    return std::nullopt;
  }
  const auto answer = [&](const std::string& word, double score) {
    return Text{word, score, language().tokenizer().encode_more({"", " " + word, ""}), false};
  };
  if (const std::optional<std::string> phrase = phrase_of(question)) {
    Signals signals(*this, features, *phrase);
    const double yes = probability(signals, *phrase);
    return yes > 0.5 ? answer("yes", std::log(yes)) : answer("no", std::log(1 - yes));
  }
  const std::vector<std::string>& numbers = bundle_.manifest.calibration->numbers;
  const std::optional<std::string> counted = numbers.empty() ? std::nullopt : number_question(question);
  if (!counted) return std::nullopt;
  const Tensor prefix = prefix_embeds(features, qformer_question(*counted));
  std::vector<double> logs;
  if (bundle_.manifest.retrieval->mean_prefix) {
    const Tensor mean = mean_prefix();
    const std::vector<double> both = language().answer_likelihoods({&prefix, &mean}, *counted, numbers);
    for (size_t i = 0; i < numbers.size(); ++i) logs.push_back(both[i] - kPriorWeight * both[i + numbers.size()]);
  } else {
    logs = language().answer_likelihoods({&prefix}, *counted, numbers);
  }
  const auto best = std::max_element(logs.begin(), logs.end());
  double sum = 0;  // one of them is right
  for (const double each : logs) sum += std::exp(each - *best);
  return answer(numbers[static_cast<size_t>(best - logs.begin())], -std::log(sum));
}

double Model::itm_log_odds(const Features& features, const std::string& text) {
  const Ids ids = text_tokenizer().encode(text), mask(ids.size(), 1);
  std::vector<Feed> feeds;
  feeds.emplace_back("vision_features", features.vision);
  feeds.emplace_back("token_ids", ids);
  feeds.emplace_back("text_mask", mask);
  const Tensor logits = graphs_.run("itm", "itm_logits", feeds);
  if (logits.values.size() != 2) throw Error(ErrorKind::kBackend, bundle_.graph("itm") + " returns no two logits");
  return static_cast<double>(logits.values[1]) - static_cast<double>(logits.values[0]);
}

std::pair<double, double> Model::likelihood(Features& features, const std::string& text) {
  const std::string written = text_tokenizer().written(text);
  const int64_t most = bundle_.manifest.retrieval->max_text_length;
  return compared(features, "text " + written, [&](const std::vector<const Tensor*>& prefixes) {
    return language().likelihoods(prefixes, written, most);
  });
}

std::pair<double, double> Model::yes_odds(Features& features, const std::string& question) {
  return compared(features, "question " + question,
                  [&](const std::vector<const Tensor*>& prefixes) { return language().yes_odds(prefixes, question); });
}

// The mean prefix_embeds of photographs, in place of no image: (1, Q, D).
Tensor Model::mean_prefix() const {
  const LlmSpec& llm = *bundle_.manifest.llm;
  Tensor mean{{1, llm.prefix_length, llm.hidden_size}, {}};
  mean.values.resize(static_cast<size_t>(llm.prefix_length * llm.hidden_size));
  const std::string bytes = read_regular(bundle_.file(*bundle_.manifest.retrieval->mean_prefix), UINT32_MAX);
  std::memcpy(mean.values.data(), bytes.data(), std::min(bytes.size(), 4 * mean.values.size()));
  return mean;
}

// Scores with the image and without one, in one run; the latter is cached.
template <class Score>
std::pair<double, double> Model::compared(Features& features, const std::string& key, Score score) {
  std::vector<std::string> needed = kRetrieval;
  needed.insert(needed.end(), kGenerative.begin(), kGenerative.end());
  bundle_.require(needed, "tell how likely a text is");
  const RetrievalSpec& spec = *bundle_.manifest.retrieval;
  if (!spec.mean_prefix) {
    throw Error(ErrorKind::kModel, "bundle '" + bundle_.manifest.name +
                                       "' cannot tell how likely a text is: it lacks retrieval.mean_prefix; "
                                       "blip2rt-train calibrate adds it");
  }
  const Tensor prefix = prefix_embeds(features, language().caption_prompt(nullptr).whole());
  {
    const std::lock_guard lock(mutex_);
    const auto found = unconditional_.find(key);
    if (found != unconditional_.end()) return {score({&prefix})[0], found->second};
  }
  const Tensor mean = mean_prefix();
  const std::vector<double> scores = score({&prefix, &mean});
  const std::lock_guard lock(mutex_);
  if (unconditional_.size() == kMaxCached) unconditional_.clear();
  unconditional_[key] = scores[1];
  return {scores[0], scores[1]};
}

}  // namespace blip2rt
