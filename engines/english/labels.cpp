#include "english/labels.h"

#include <algorithm>
#include <set>
#include <utility>

#include "base/error.h"
#include "base/utf8.h"
#include "english/everyday_labels.h"
#include "english/statements.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxCharacters = 200, kShownCharacters = 50, kMaxFaults = 5;

std::vector<std::string> split(std::string_view text, std::string_view separator) {
  std::vector<std::string> parts;
  for (size_t end = 0; end != std::string_view::npos;) {
    end = text.find(separator);
    parts.emplace_back(stripped(text.substr(0, end)));
    if (end != std::string_view::npos) text.remove_prefix(end + separator.size());
  }
  return parts;
}

}  // namespace

Labels::Labels(const std::vector<std::string>& texts) {
  Faults faults;
  std::set<std::string> found;
  for (const std::string& text : texts) {
    std::vector<std::string> parents = split(text, "|");
    const std::string name = std::move(parents.back());
    parents.pop_back();
    parents.erase(std::remove(parents.begin(), parents.end(), ""), parents.end());
    if (!has_words(name) || first_characters(name, kMaxCharacters).size() < name.size()) {
      if (faults.size() == kMaxFaults) break;
      faults.push_back(quoted(first_characters(text, kShownCharacters)) +
                       " is no label: give a word or a phrase, as in 'dog' or 'animal|dog'");
    } else if (found.insert(name).second) {
      add({name, std::move(parents), {}});
    }
  }
  if (faults.empty() && labels_.empty()) faults.emplace_back("there are no labels: give one or more");
  if (!faults.empty()) throw Error(ErrorKind::kArgument, std::move(faults));
}

// Lines such as "animal > bird: duck/duckling, goose": parents, then labels with their synonyms.
std::shared_ptr<const Labels> Labels::everyday() {
  static const std::shared_ptr<const Labels> labels = [] {
    const std::shared_ptr<Labels> made(new Labels());
    for (const std::string& line : split(stripped(kEverydayLabels), "\n")) {
      const size_t colon = line.find(": ");
      const std::vector<std::string> parents = split(std::string_view(line).substr(0, colon), " > ");
      for (const std::string& entry : split(std::string_view(line).substr(colon + 2), ", ")) {
        std::vector<std::string> words = split(entry, "/");
        std::string name = std::move(words.front());
        words.erase(words.begin());
        made->add({std::move(name), parents, std::move(words)});
      }
    }
    return made;
  }();
  return labels;
}

void Labels::add(Label label) {
  std::vector<std::string> forms = {" " + lower_text(label.name) + " ", " " + plural_of(lower_text(label.name)) + " "};
  for (const std::string& word : label.synonyms) {
    forms.push_back(" " + word + " ");
    forms.push_back(" " + plural_of(word) + " ");
  }
  forms_.push_back(std::move(forms));
  labels_.push_back(std::move(label));
}

std::vector<bool> Labels::named_in(const std::vector<std::string>& captions) const {
  std::string text;
  for (const std::string& caption : captions) text += (text.empty() ? " " : " ; ") + clean_caption(caption) + " ";
  std::vector<bool> named;
  for (const std::vector<std::string>& forms : forms_) {
    named.push_back(std::any_of(forms.begin(), forms.end(),
                                [&](const std::string& form) { return text.find(form) != std::string::npos; }));
  }
  return named;
}

}  // namespace blip2rt
