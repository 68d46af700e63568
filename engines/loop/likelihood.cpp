// Reads texts as rows of one position each, so that a run of the graph returns the logits of all positions.
#include "loop/likelihood.h"

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <string>

#include "base/error.h"
#include "loop/decoder.h"
#include "loop/request.h"
#include "ort/active_call.h"
#include "search/scoring.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxRows = 128;  // of a run

// Reads images and texts, and sums up the log-probabilities of the texts' tokens.
class Reader {
 public:
  Reader(const Generator& generator, const Prefix& prefix, const Prompts& prompts, size_t rows, size_t positions,
         const std::function<void()>& before_run)
      : generator_(generator),
        prefix_(prefix),
        prompts_(prompts),
        rows_(rows),
        positions_(positions),
        before_run_(before_run),
        decoder_(generator, {static_cast<int>(rows), static_cast<int>(rows), static_cast<int>(positions), 1,
                             static_cast<int>(positions)}),
        scorer_(static_cast<size_t>(generator.shape().vocab_size)) {}

  // Adds a text. After run(), `sum` has its log-probability.
  void add(size_t image, const std::vector<int64_t>& text, double& sum) {
    const size_t before = static_cast<size_t>(prefix_.length) + prompts_[image].size();
    bool is_read = image == image_;
    if (place_ + text.size() + (is_read ? 0 : before) > positions_) {
      run();
      is_read = is_read && image_start_ == 0;
      place_ = is_read ? before : 0;  // its positions are used again
    }
    if (!is_read) read_image(image, before);
    Context context = context_;
    context.start = static_cast<int>(place_);
    add_row(last_, context, &sum, text[0]);
    for (size_t i = 1; i < text.size(); ++i) {
      ++context.before;
      add_row({text[i - 1], nullptr}, context, &sum, text[i]);
    }
    place_ += text.size();
  }

  void run() {
    if (targets_.empty()) return;
    before_run_();
    decoder_.step();
    for (size_t row = 0; row < targets_.size(); ++row) {
      const Target& target = targets_[row];
      if (target.sum == nullptr) continue;
      const float* logits = decoder_.logits(static_cast<int>(row));
      scorer_.measure(logits);
      *target.sum += static_cast<double>(logits[target.token]) - scorer_.largest() - scorer_.log_sum();
    }
    targets_.clear();
    decoder_.clear();
  }

 private:
  // A position to read: an embedding, or a token if that is null.
  struct Position {
    int64_t token;
    const float* embedding;
  };

  // The token whose log-probability a row adds to `sum`, if that is not null.
  struct Target {
    double* sum;
    int64_t token;
  };

  void add_row(const Position& position, const Context& context, double* sum, int64_t token) {
    if (targets_.size() == rows_) run();
    if (position.embedding != nullptr) {
      decoder_.add(position.embedding, context, sum != nullptr);
    } else {
      decoder_.add(position.token, context, sum != nullptr);
    }
    targets_.push_back({sum, token});
  }

  Position position_of(size_t image, size_t position) const {
    const auto length = static_cast<size_t>(prefix_.length),
               width = static_cast<size_t>(generator_.shape().hidden_size);
    if (position < length) return {0, prefix_.data + (image * length + position) * width};
    return {prompts_[image][position - length], nullptr};
  }

  // Reads what the texts share. Each text reads the last position before it again: its logits score the first token.
  void read_image(size_t image, size_t before) {
    const auto start = static_cast<int>(place_);
    if (generator_.encoder() != nullptr) {
      const std::vector<int64_t>& prompt = prompts_[image];
      decoder_.encode({{position_of(image, 0).embedding,
                        prefix_.length,
                        prompt.data(),
                        static_cast<int>(prompt.size()),
                        {0, 0, 0, 0, start, static_cast<int>(before)}}});
      context_ = {0, 0, 0, 0, start, static_cast<int>(before)};
      last_ = {generator_.decoder_start_token_id(), nullptr};
    } else {
      for (size_t i = 0; i + 1 < before; ++i) {
        add_row(position_of(image, i), {0, 0, start, static_cast<int>(i)}, nullptr, 0);
      }
      context_ = {start, static_cast<int>(before) - 1, 0, 0};
      last_ = position_of(image, before - 1);
    }
    image_ = image;
    image_start_ = place_;
    place_ += before;
  }

  const Generator& generator_;
  const Prefix& prefix_;
  const Prompts& prompts_;
  const size_t rows_, positions_;
  const std::function<void()>& before_run_;
  PoolDecoder decoder_;
  RowScorer scorer_;
  std::vector<Target> targets_;             // (rows) of the next run
  size_t image_ = static_cast<size_t>(-1);  // the last one that was read
  size_t image_start_ = 0, place_ = 0;      // its first position; the first free one
  Context context_ = {0, 0, 0, 0};          // of it
  Position last_ = {0, nullptr};
};

void check_texts(const std::vector<size_t>& images, const Prompts& texts, const Prompts& prompts, int vocab_size) {
  if (images.size() != texts.size()) throw std::runtime_error("likelihoods: give an image for each text");
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string text = "text " + std::to_string(i);
    if (images[i] >= prompts.size()) throw std::runtime_error(text + " is of an image that is not there");
    if (texts[i].empty()) throw std::runtime_error(text + " has no tokens");
    for (int64_t token : texts[i]) {
      if (token >= 0 && token < vocab_size) continue;
      throw std::runtime_error(text + " has token id " + std::to_string(token) + ", outside the vocabulary of " +
                               std::to_string(vocab_size));
    }
  }
}

}  // namespace

std::vector<double> likelihoods(const Generator& generator, const Prefix& prefix, const Prompts& prompts,
                                const std::vector<size_t>& images, const Prompts& texts,
                                const std::function<void()>& before_run) {
  generator.llm().check_process();
  const ActiveCall call;
  if (generator.rows().rows > 0) {
    throw Error(
        ErrorKind::kCapability,
        "this backend cannot compute how likely a text is, which the bundle's Match.score needs: use the backend "
        "ort, or set the manifest's retrieval.likelihood_weight to 0");
  }
  check_prompts(prefix, prompts, generator);
  check_texts(images, texts, prompts, generator.shape().vocab_size);
  std::vector<double> sums(texts.size());
  if (texts.empty()) return sums;
  size_t all = 0, longest = 0;  // positions of images with their texts
  for (size_t i = 0; i < texts.size(); ++i) {
    const size_t each = static_cast<size_t>(prefix.length) + prompts[images[i]].size() + texts[i].size();
    all += each;
    longest = std::max(longest, each);
  }
  const size_t rows = std::min(all, kMaxRows);
  Reader reader(generator, prefix, prompts, rows, std::max(rows, longest), before_run);
  for (size_t i = 0; i < texts.size(); ++i) reader.add(images[i], texts[i], sums[i]);
  reader.run();
  return sums;
}

}  // namespace blip2rt
