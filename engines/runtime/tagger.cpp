#include "runtime/tagger.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <set>
#include <string_view>

#include "base/error.h"
#include "english/statements.h"
#include "runtime/signals.h"

namespace blip2rt {

std::vector<std::string> embedded_texts(const Labels& labels) {
  std::vector<std::string> texts;
  for (const Label& label : labels.all()) texts.push_back(without_article(label.name));
  return texts;
}

std::vector<double> Tagger::nearness(const float* image_embeds, size_t queries, const float* label_embeds,
                                     size_t width) const {
  const std::optional<Logistic>& regression = calibration_.nearness;
  double weight_of_largest = 1;
  std::vector<double> weights(queries), text_weights(width);
  if (regression) {
    weight_of_largest = 0;
    for (const auto& [name, weight] : regression->weights) {
      if (name == "name_cosine") weight_of_largest = weight;
      for (size_t query = 0; query < queries; ++query) {
        if (name == "query_" + std::to_string(query)) weights[query] = weight;
      }
    }
    if (calibration_.label_text.size() != width) {
      throw Error(ErrorKind::kModel, "calibration.label_text is not as wide as the embeddings: calibrate again");
    }
    text_weights = calibration_.label_text;
  }
  std::vector<double> near;
  for (size_t label = 0; label < labels_->all().size(); ++label, label_embeds += width) {
    double largest = -std::numeric_limits<double>::infinity(), sum = 0;
    for (size_t query = 0; query < queries; ++query) {
      double cosine = 0;
      for (size_t i = 0; i < width; ++i) {
        cosine += static_cast<double>(image_embeds[query * width + i]) * static_cast<double>(label_embeds[i]);
      }
      largest = std::max(largest, cosine);
      sum += weights[query] * cosine;
    }
    for (size_t i = 0; i < width; ++i) sum += text_weights[i] * static_cast<double>(label_embeds[i]);
    near.push_back(weight_of_largest * largest + sum);
  }
  return near;
}

std::vector<Tag> Tagger::tags(const std::vector<double>& nearness, const std::string& caption) const {
  const std::vector<Label>& labels = labels_->all();
  const std::vector<bool> told = reads_captions() ? labels_->named_in({caption}) : std::vector<bool>(labels.size());
  std::vector<Tag> likely;
  for (size_t label = 0; label < labels.size(); ++label) {
    const double chance = probability(*calibration_.label, [&](const std::string& name) {
      return name == "told" ? (told[label] ? 1.0 : 0.0) : nearness.at(label);
    });
    if (chance >= threshold_) likely.push_back({label, chance});
  }
  std::stable_sort(likely.begin(), likely.end(),
                   [](const Tag& one, const Tag& other) { return one.probability > other.probability; });
  std::set<std::string> implied;
  for (const Tag& tag : likely) {
    const Label& label = labels[tag.label];
    implied.insert(label.parents.begin(), label.parents.end());
    constexpr std::string_view kOf = " of ";
    const size_t of = label.name.find(kOf);  // "group of people"
    if (of != std::string::npos) implied.insert(label.name.substr(of + kOf.size()));
  }
  std::vector<Tag> tags;
  for (const Tag& tag : likely) {
    if (tags.size() < top_ && implied.count(labels[tag.label].name) == 0) tags.push_back(tag);
  }
  return tags;
}

}  // namespace blip2rt
