// Image embeddings and a caption -> the labels that a picture shows. Knows numbers and words, no graphs.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle/manifest.h"
#include "english/labels.h"

namespace blip2rt {

struct Tag {
  size_t label;  // its number in the list
  double probability;
};

// Labels pictures from one list. Any thread may use it.
class Tagger {
 public:
  // top: most labels of a picture. threshold: their least probability. `calibration` has a regression of labels.
  Tagger(std::shared_ptr<const Labels> labels, const Calibration& calibration, size_t top, double threshold)
      : labels_(std::move(labels)), calibration_(calibration), top_(top), threshold_(threshold) {}

  const Labels& labels() const { return *labels_; }

  // Whether it weighs if the caption names a label.
  bool reads_captions() const { return calibration_.label->weights.count("told") != 0; }

  // image_embeds (Q, E), embeddings of the labels (L, E) -> how near each label is: its largest cosine if the
  // calibration has no nearness. Throws Error if Q is not the calibration's.
  std::vector<double> nearness(const float* image_embeds, size_t queries, const float* label_embeds,
                               size_t width) const;

  // The nearness of each label, and the picture's caption if it is read -> labels, the likeliest first.
  std::vector<Tag> tags(const std::vector<double>& nearness, const std::string& caption) const;

 private:
  const std::shared_ptr<const Labels> labels_;
  const Calibration calibration_;
  const size_t top_;
  const double threshold_;
};

// The text of a label that is embedded.
std::vector<std::string> embedded_texts(const Labels& labels);

}  // namespace blip2rt
