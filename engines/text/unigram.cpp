// The most likely segmentation under a unigram model (Kudo, arXiv:1804.10959).
#include <algorithm>
#include <limits>
#include <string>

#include "base/unicode.h"
#include "text/models.h"
#include "text/tokenizer_types.h"

namespace blip2rt {
namespace {

constexpr double kUnknownPenalty = 10;
constexpr size_t kMaxTokenBytes = 4096;  // longer ones would make a text quadratic

class Unigram : public TokenModel {
 public:
  explicit Unigram(Json model)
      : TokenModel(model["vocab"]),
        unknown_(model["unk_id"] ? model["unk_id"].whole() : ModelVocabulary::kNone),
        byte_fallback_(model["byte_fallback"] && model["byte_fallback"].flag()) {
    for (const Json entry : model["vocab"]) {
      scores_.push_back((*++entry.begin()).number());
      lowest_ = std::min(lowest_, scores_.back());
    }
    const bool outside = unknown_ != ModelVocabulary::kNone && unknown_ >= scores_.size();
    if (outside || vocabulary_.max_bytes() > kMaxTokenBytes) {
      throw TokenizerError(TokenizerError::kUnknown,
                           outside ? "an unk_id without a token" : "a token as long as a page");
    }
  }

  void encode(std::string_view word, std::vector<int64_t>& ids) const override {
    const std::vector<End> ends = best_ends(word);
    std::vector<std::pair<size_t, size_t>> parts;  // last first; runs of unknown ones are joined
    bool joins = false;
    for (size_t end = word.size(); end > 0; end = ends[end].start) {
      const bool unknown = unknown_ != ModelVocabulary::kNone && ends[end].id == unknown_;
      if (unknown && joins) {
        parts.back().first = ends[end].start;
      } else {
        parts.emplace_back(ends[end].start, end);
      }
      joins = unknown;
    }
    for (size_t i = parts.size(); i-- > 0;) add(word.substr(parts[i].first, parts[i].second - parts[i].first), ids);
  }

 private:
  // The best segmentation that ends at a byte.
  struct End {
    double score = 0;
    size_t start = std::string_view::npos;
    uint32_t id = 0;
  };

  std::vector<End> best_ends(std::string_view word) const {
    std::vector<End> ends(word.size() + 1);
    const auto offer = [&](size_t start, size_t end, double score, uint32_t id) {
      const double total = score + ends[start].score;
      if (ends[end].start == std::string_view::npos || total > ends[end].score) ends[end] = {total, start, id};
    };
    for (size_t start = 0, next; start < word.size(); start = next) {
      next = start;
      next_character(word, next);
      const size_t last = std::min(word.size(), start + vocabulary_.max_bytes());
      bool whole = false;  // whether the first character is a token
      TextHash hash;
      for (size_t end = start; end < last;) {
        hash.add(word[end++]);
        if (end < word.size() && (word[end] & 0xC0) == 0x80) continue;
        const uint32_t id = vocabulary_.id(word.substr(start, end - start), hash.value());
        if (id == ModelVocabulary::kNone) continue;
        offer(start, end, scores_[id], id);
        whole = whole || end == next;
      }
      if (whole) continue;
      const double score = lowest_ - kUnknownPenalty;
      const bool best = ends[next].start == std::string_view::npos || score + ends[start].score > ends[next].score;
      if (best && unknown_ == ModelVocabulary::kNone) no_token();
      offer(start, next, score, unknown_);
    }
    return ends;
  }

  void add(std::string_view part, std::vector<int64_t>& ids) const {
    const uint32_t id = vocabulary_.id(part);
    if (id != ModelVocabulary::kNone) {
      ids.push_back(id);
      return;
    }
    const std::vector<int64_t> bytes = byte_fallback_ ? byte_tokens(part) : std::vector<int64_t>();
    ids.insert(ids.end(), bytes.begin(), bytes.end());
    if (bytes.empty() && unknown_ == ModelVocabulary::kNone) no_token();
    if (bytes.empty()) ids.push_back(unknown_);
  }

  [[noreturn]] static void no_token() {
    throw TokenizerError(TokenizerError::kText, "a character of the text has no token, and there is no unknown token");
  }

  const uint32_t unknown_;
  const bool byte_fallback_;
  std::vector<double> scores_;
  double lowest_ = std::numeric_limits<double>::infinity();
};

}  // namespace

std::unique_ptr<const TokenModel> unigram_from(Json model) { return std::make_unique<Unigram>(model); }

}  // namespace blip2rt
