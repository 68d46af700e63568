#include "runtime/signals.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "english/statements.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

constexpr std::string_view kQuery = "query_";

bool is_query(const std::string& name) { return name.compare(0, kQuery.size(), kQuery) == 0; }

bool reads_image_embeds(const std::string& name) {
  return name == "cosine" || name == "name_cosine" || name == "base_cosine" || is_query(name);
}

// The output that a signal reads besides image_embeds, and the form of the text that it is computed of.
std::pair<Output, std::string> source_of(const std::string& name, const std::string& text) {
  if (name == "cosine") return {Output::kTextEmbeds, text};
  if (name == "name_cosine" || is_query(name))
    return {Output::kTextEmbeds, is_phrase(text) ? without_article(text) : text};
  if (name == "itm") return {Output::kItmLogits, text};
  if (name == "likelihood") return {Output::kLikelihoods, text};
  if (name == "phrase_likelihood") return {Output::kLikelihoods, with_article(text)};
  if (name == "yes" || name == "yes_blind") return {Output::kYesOdds, question_of(with_article(text))};
  return {Output::kNone, ""};
}

// Texts are embedded once for all images.
size_t pair_of(Output output, size_t pair) { return output == Output::kTextEmbeds ? 0 : pair; }

}  // namespace

bool computes(const Logistic& regression, bool of_statement) {
  static const std::set<std::string> known = {"cosine", "name_cosine",       "base_cosine", "itm",       "likelihood",
                                              "words",  "phrase_likelihood", "yes",         "yes_blind", "score"};
  return std::all_of(regression.weights.begin(), regression.weights.end(), [of_statement](const auto& weight) {
    const bool is_subject = of_statement && weight.first.compare(0, kSubject.size(), kSubject) == 0;
    const std::string name = is_subject ? weight.first.substr(kSubject.size()) : weight.first;
    return known.count(name) != 0 || is_query(name);
  });
}

Signals::Signals(std::vector<std::string> texts, const std::vector<std::vector<std::string>>& names,
                 std::vector<double> mean_text)
    : texts_(std::move(texts)), mean_text_(std::move(mean_text)) {
  for (const Output output :
       {Output::kImageEmbeds, Output::kTextEmbeds, Output::kItmLogits, Output::kLikelihoods, Output::kYesOdds}) {
    Run run{output, {}, {}};
    std::set<std::pair<size_t, std::string>> found;
    for (size_t pair = 0; pair < texts_.size(); ++pair) {
      for (const std::string& name : names.at(pair)) {
        auto [source, text] = source_of(name, texts_[pair]);
        if (output == Output::kImageEmbeds) {
          if (reads_image_embeds(name) && found.emplace(pair, "").second) run.pairs.push_back(pair);
        } else if (source == output && found.emplace(pair_of(output, pair), text).second) {
          if (output != Output::kTextEmbeds) run.pairs.push_back(pair);
          run.texts.push_back(std::move(text));
        }
      }
    }
    if (run.size() != 0) runs_.push_back(std::move(run));
  }
}

void Signals::add(size_t number, const double* values, size_t width) {
  const Run& run = runs_.at(number);
  for (size_t i = 0; i < run.size(); ++i, values += width) {
    const std::string text = run.texts.empty() ? "" : run.texts[i];
    outputs_[{run.output, run.pairs.empty() ? 0 : run.pairs[i], text}] = {values, values + width};
  }
}

double Signals::at(const std::string& name, size_t pair) const {
  const auto set = given_.find(name);
  if (set != given_.end()) return set->second.at(pair);
  const std::string& whole = texts_.at(pair);
  if (name == "words") return static_cast<double>(words_of(whole).size());
  if (name == "base_cosine") {
    double sum = 0;
    const Values each = cosines(pair, mean_text_);
    for (const double cosine : each) sum += cosine;
    return sum / static_cast<double>(each.size());
  }
  const auto [source, text] = source_of(name, whole);
  if (source == Output::kNone) throw std::logic_error("no signal is called " + name);
  const Values& values = values_of(source, pair, text);
  if (source == Output::kItmLogits) return values.at(1) - values.at(0);
  if (source == Output::kLikelihoods || source == Output::kYesOdds) return values.at(name == "yes_blind" ? 1 : 0);
  const Values each = cosines(pair, values);
  if (!is_query(name)) return *std::max_element(each.begin(), each.end());
  for (size_t query = 0; query < each.size(); ++query) {
    if (name == std::string(kQuery) + std::to_string(query)) return each[query];
  }
  throw Error(ErrorKind::kModel, "the bundle's calibration weighs " + name + ", which its graphs do not have");
}

const Signals::Values& Signals::values_of(Output output, size_t pair, const std::string& text) const {
  const auto found = outputs_.find({output, pair_of(output, pair), text});
  if (found == outputs_.end()) throw std::logic_error("a run of the signals has not been added");
  return found->second;
}

// text (E) -> its cosine with each query of the image (Q).
Signals::Values Signals::cosines(size_t pair, const Values& text) const {
  const Values& queries = values_of(Output::kImageEmbeds, pair, "");
  if (text.empty() || queries.empty() || queries.size() % text.size() != 0) {
    throw Error(ErrorKind::kModel, "the embeddings of images and texts differ in width: export the bundle again");
  }
  Values products;
  for (size_t at = 0; at < queries.size(); at += text.size()) {
    double product = 0;
    for (size_t i = 0; i < text.size(); ++i) product += queries[at + i] * text[i];
    products.push_back(product);
  }
  return products;
}

}  // namespace blip2rt
