// Images and texts -> matches, probabilities, labels, choices, short answers and guides, any number at a time. Runs the
// graphs; the other files here weigh what they give.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/lazy.h"
#include "language/language.h"
#include "runtime/calibrator.h"
#include "runtime/caption_pool.h"
#include "runtime/graphs.h"
#include "runtime/image_gain.h"
#include "runtime/short_answers.h"
#include "runtime/tagger.h"

namespace blip2rt {

// What the encoder makes of I images, and what is made of that once. Any thread may use it.
struct Features {
  TensorView vision;  // (I, N, C) float32
  std::shared_ptr<const void> memory;
  uint64_t model = 0;          // that made it, by its number
  Lazy<Tensor> prefix_embeds;  // (I, Q, D), unless the Q-Former reads a text with the image
  Lazy<Tensor> image_embeds;   // (I, Q, E)
};

// Any thread may use it.
class Judge {
 public:
  using Strings = std::vector<std::string>;
  using Images = std::vector<size_t>;                                    // the image of each text
  using Compared = std::pair<std::vector<double>, std::vector<double>>;  // with the image and without, of each text
  using Guides = std::vector<std::shared_ptr<const Guide>>;

  // `graphs` must outlive it. `language`: returns the language side, which is opened at its first use.
  // kept_values: most values without an image that are kept.
  Judge(const Bundle& bundle, Graphs& graphs, std::function<const Language&()> language, bool special_tokens,
        size_t kept_values = 8192);

  // Whether the bundle is calibrated for statements, so that questions are answered without generating if it captions;
  // for captions.
  bool rates_statements() const { return calibrator_ && calibrator_->rates_statements(); }
  bool rates_captions() const { return calibrator_ && calibrator_->rates_captions(); }
  void require_statements(const std::string& action) const { require_calibration(rates_statements(), action); }
  void require_confidence() const { require_calibration(rates_captions(), "tell how likely a caption is right"); }

  // Texts -> matches; the calibrated probability that each statement is true: a phrase, a sentence, or a question
  // whether something is there; that each caption is right, NaN for one without words.
  std::vector<Match> match(Features& features, const Images& images, const Strings& texts);
  std::vector<double> probabilities(Features& features, const Images& images, Strings statements);
  std::vector<double> confidence(Features& features, const Images& images, const Texts& captions);

  // The signals of signals.h, whose names are given.
  Signals signals(Features& features, const Images& images, const Strings& texts, const Strings& names,
                  std::vector<double> mean_text);

  // A short question, or nothing if its answer must be generated; and the answers to short questions.
  std::optional<ShortQuestion> short_question(const std::string& question, const GenerationOptions& options) const;
  Texts short_answers(Features& features, const Images& images, const std::vector<ShortQuestion>& asked);

  // How likely each answer is: log p(answer | image, question), less a part of what it is behind the mean_prefix.
  std::vector<double> answer_scores(Features& features, size_t image, const std::string& question,
                                    const Strings& answers);
  // The number of the choice that answers a question best.
  size_t choose(Features& features, size_t image, const std::string& question, const Strings& choices);

  // A tagger of a list, and the labels of each image. `captions`: of the images, if the tagger reads them.
  Tagger tagger(const std::shared_ptr<const Labels>& labels, size_t top, double threshold) const;
  std::vector<std::vector<Tag>> tags(const Tagger& tagger, Features& features, const Strings& captions);

  // What the bundle's own pool says about each caption or answer, null without a pool; and a caller's pool.
  std::shared_ptr<const CaptionPool> own_pool();
  Guides caption_guides(const CaptionPool& pool, Features& features);
  Guides answer_guides(Features& features, const Images& images, const Strings& questions);

  // The graphs' outputs. `questions`: what a Q-Former that reads text reads with each image.
  const Tensor& image_embeds(Features& features);
  Tensor prefix_embeds(Features& features, const Strings& questions);
  Tensor caption_prefix(Features& features);  // (I, Q, D)
  Tensor text_embeds(const Strings& texts);   // (T, E)
  std::shared_ptr<const Tensor> label_embeds(const Labels& labels);
  Tensor itm_logits(const Features& features, const Images& images, const Strings& texts);  // (T, 2)
  Compared likelihoods(Features& features, const Images& images, const Strings& texts);     // log p(text)
  Compared yes_odds(Features& features, const Images& images, const Strings& questions);    // log p(yes) - log p(no)
  const Tensor* mean_prefix();  // (1, Q, D), in place of no image; null if there is none

  const QFormerTokenizer& tokenizer();  // of texts that are matched
  size_t kept_values() const { return gain_.size(); }

 private:
  void require_calibration(bool has, const std::string& action) const;
  void require_likelihood(const std::string& action) const;
  std::unique_ptr<QFormerTokenizer> tokenizer_of(const QFormerTextSpec& spec) const;
  void measure(Signals& signals, Features& features, const Images& images);
  std::vector<double> output(Features& features, const Images& images, const Strings& texts, Output output);
  Compared compared(Features& features, const GainRun& run);
  std::vector<double> log_probabilities(const std::vector<const float*>& prefixes, const std::vector<Ids>& prompts,
                                        const Images& images, const std::vector<Ids>& texts);

  const Bundle bundle_;
  Graphs& graphs_;
  const std::function<const Language&()> language_;
  const bool special_tokens_;
  const std::optional<Calibrator> calibrator_;  // if the bundle matches
  ImageGain gain_;
  Lazy<std::unique_ptr<QFormerTokenizer>> text_tokenizer_, question_tokenizer_;
  Lazy<std::shared_ptr<const CaptionPool>> pool_;
  Lazy<Tensor> mean_prefix_;
  std::mutex mutex_;  // of what follows: the last lists of labels with their embeddings
  std::vector<std::pair<Strings, std::shared_ptr<const Tensor>>> label_embeds_;
};

// Throws Error for a text without words.
void check_words(const std::string& text);

}  // namespace blip2rt
