// Lists of labels: short names for what pictures show, with their parents and synonyms. Knows text, no model.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace blip2rt {

struct Label {
  std::string name;
  std::vector<std::string> parents;   // from the most general on
  std::vector<std::string> synonyms;  // other words for it
};

// Any thread may use it.
class Labels {
 public:
  // Texts, each once; "animal|dog" is the label dog below animal. Throws Error with every fault.
  explicit Labels(const std::vector<std::string>& texts);

  // The list that comes with blip2rt: everyday_labels.h.
  static std::shared_ptr<const Labels> everyday();

  const std::vector<Label>& all() const { return labels_; }

  // The labels that captions of a picture name, by any of their words or plurals.
  std::vector<bool> named_in(const std::vector<std::string>& captions) const;

 private:
  Labels() = default;
  void add(Label label);

  std::vector<Label> labels_;
  std::vector<std::vector<std::string>> forms_;  // words of each label and their plurals, between spaces
};

}  // namespace blip2rt
