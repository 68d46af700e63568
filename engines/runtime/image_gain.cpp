#include "runtime/image_gain.h"

#include <algorithm>
#include <set>
#include <stdexcept>

namespace blip2rt {
namespace {

constexpr size_t kMaxKeyBytes = 4096;  // longer texts are not cached

std::string key_of(char kind, const TokenIds& first, const TokenIds& second) {
  std::string key(1, kind);
  for (const TokenIds* ids : {&first, &second}) {
    key += std::to_string(ids->size()) + ":";
    key.append(reinterpret_cast<const char*>(ids->data()), ids->size() * sizeof(int64_t));
  }
  return key;
}

// The longest common beginning of lists.
TokenIds common_beginning(const std::vector<TokenIds>& lists) {
  const auto [first, last] = std::minmax_element(lists.begin(), lists.end());
  const auto end = std::mismatch(first->begin(), first->end(), last->begin(), last->end()).first;
  return {first->begin(), end};
}

}  // namespace

size_t ImageGain::size() const {
  const std::lock_guard lock(mutex_);
  return without_.size();
}

void ImageGain::find_new(GainRun& run) const {
  const std::lock_guard lock(mutex_);
  std::set<std::string> seen;
  for (size_t row = 0; row < run.keys.size(); ++row) {
    const auto found = without_.find(run.keys[row]);
    run.without.push_back(found == without_.end() ? std::nullopt : std::optional(found->second));
    if (!run.without[row] && seen.insert(run.keys[row]).second) run.new_rows.push_back(row);
  }
}

GainRun ImageGain::texts(size_t count, const std::vector<size_t>& images, const TokenIds& prompt,
                         const std::vector<TokenIds>& texts) const {
  GainRun run;
  for (const TokenIds& text : texts) run.keys.push_back(key_of('t', prompt, text));
  find_new(run);
  run.images = images;
  run.texts = texts;
  for (const size_t row : run.new_rows) {
    run.images.push_back(count);
    run.texts.push_back(texts[row]);
  }
  for (size_t image = 0; image < count + !run.new_rows.empty(); ++image) run.prefixes.push_back(image);
  run.prompts.assign(run.prefixes.size(), prompt);
  return run;
}

GainRun ImageGain::questions(size_t count, const std::vector<size_t>& images, const std::vector<TokenIds>& asked,
                             const std::vector<TokenIds>& answers, bool shares) const {
  GainRun run;
  run.odds = true;
  for (const TokenIds& question : asked) run.keys.push_back(key_of('q', question, {}));
  find_new(run);
  std::vector<std::pair<size_t, const TokenIds*>> rows;  // image and question
  for (size_t row = 0; row < asked.size(); ++row) rows.emplace_back(images.at(row), &asked[row]);
  for (const size_t row : run.new_rows) rows.emplace_back(count, &asked[row]);
  const TokenIds shared = shares && rows.size() > 2 ? common_beginning(asked) : TokenIds();
  if (!shared.empty()) {  // what follows it is in the texts of both answers, and cancels out
    for (size_t image = 0; image < count + !run.new_rows.empty(); ++image) run.prefixes.push_back(image);
    run.prompts.assign(run.prefixes.size(), shared);
  }
  for (const auto& [image, question] : rows) {
    if (shared.empty()) {
      run.prefixes.push_back(image);
      run.prompts.push_back(*question);
    }
    for (const TokenIds& answer : answers) {
      TokenIds text(question->begin() + static_cast<ptrdiff_t>(shared.size()), question->end());
      if (shared.empty()) text.clear();
      text.insert(text.end(), answer.begin(), answer.end());
      run.images.push_back(shared.empty() ? run.prompts.size() - 1 : image);
      run.texts.push_back(std::move(text));
    }
  }
  return run;
}

std::pair<std::vector<double>, std::vector<double>> ImageGain::finish(const GainRun& run,
                                                                      const std::vector<double>& logs) {
  if (logs.size() != run.texts.size()) throw std::invalid_argument("the log-probabilities are not those of the run");
  std::vector<double> values;
  for (size_t i = 0; i < logs.size(); i += run.odds ? 2 : 1) {
    values.push_back(run.odds ? logs[i] - logs[i + 1] : logs[i]);
  }
  const size_t count = run.keys.size();
  std::unordered_map<std::string, double> found;
  for (size_t i = 0; i < run.new_rows.size(); ++i) found[run.keys[run.new_rows[i]]] = values[count + i];
  values.resize(count);
  std::vector<double> without;
  for (size_t row = 0; row < count; ++row)
    without.push_back(run.without[row] ? *run.without[row] : found[run.keys[row]]);
  const std::lock_guard lock(mutex_);
  for (const auto& [key, value] : found) {
    if (key.size() > kMaxKeyBytes) continue;
    if (without_.size() >= capacity_) without_.clear();
    without_[key] = value;
  }
  return {std::move(values), std::move(without)};
}

}  // namespace blip2rt
