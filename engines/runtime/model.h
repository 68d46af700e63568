// A bundle that captions, answers, matches and embeds: the order of things for C, as blip2rt.pipeline and
// blip2rt.matching have it for Python. Any thread may use a model.
//
//     image -> pixels -> vision_features -> query_output -> prefix_embeds -> token ids -> text
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
#include "bundle/bundle.h"
#include "media/image.h"
#include "runtime/calibrator.h"
#include "runtime/caption_pool.h"
#include "runtime/graphs.h"
#include "runtime/image_gain.h"
#include "runtime/language_model.h"
#include "runtime/short_answers.h"
#include "runtime/tagger.h"

namespace blip2rt {

struct ModelOptions {
  int threads = 0;  // of each operator; 0: one for each physical core
  ImageRules images;
  bool special_tokens = true, trusted_graphs = false, verify = false;
  std::optional<bool> core;  // whether the executor runs the graphs; unset: where it is at least as fast
  std::function<bool()> find_onnxruntime = [] { return true; };  // false: there is none, and the executor runs all
};

// A picture, resized for a model.
struct PreparedImage {
  uint64_t model;            // its number
  std::vector<uint8_t> rgb;  // (height, width, 3)
};

// What the encoder makes of an image. Any thread may use it.
struct Features {
  uint64_t model;
  Tensor vision;  // (1, N, C)
  std::mutex mutex;
  std::optional<Tensor> prefix_embeds;  // (1, Q, D), unless the Q-Former reads a text with the image
};

class Model {
 public:
  // Opens a bundle. ONNX Runtime must be loaded, unless the executor runs the graphs. Throws Error.
  Model(const std::string& folder, const ModelOptions& options);

  // These throw ImageError, too.
  PreparedImage image_file(const std::string& path) const;
  PreparedImage image_bytes(std::string_view bytes) const;
  PreparedImage image_pixels(const uint8_t* pixels, Size size, ptrdiff_t stride, PixelFormat format) const;

  std::unique_ptr<Features> encode(const PreparedImage& image);

  // `prompt`: null for the bundle's own.
  Texts caption(Features& features, const std::string* prompt, const CallerOptions& options, const OnPiece& on_piece);
  Texts ask(Features& features, const std::string& question, const CallerOptions& options, const OnPiece& on_piece);
  std::unique_ptr<Conversation> chat(const std::shared_ptr<Features>& features, const CallerOptions& options);

  Match match(Features& features, const std::string& text);
  // The calibrated probability that a statement is true: a phrase, a sentence, or a question whether something is
  // there; that a caption is right.
  double sees(Features& features, const std::string& statement);
  double confidence(Features& features, const Text& caption);
  // The number of the choice that answers a question best.
  size_t choose(Features& features, const std::string& question, const std::vector<std::string>& choices);
  // The likeliest labels, at most `top`, as "animal|cat", with their probabilities as scores.
  Texts tag(Features& features, const std::shared_ptr<const Labels>& labels, size_t top, double threshold);
  Tensor embed_image(const Features& features);  // (1, Q, E)
  Tensor embed_text(const std::string& text);    // (1, E)

 private:
  using Compared = std::pair<std::vector<double>, std::vector<double>>;  // with the image and without

  ImageTarget target() const;
  void require_own(uint64_t model, const char* what) const;
  LanguageModel& language();
  std::unique_ptr<QFormerTokenizer> tokenizer_of(const QFormerTextSpec& spec) const;
  const QFormerTokenizer& text_tokenizer();
  Tensor prefix_embeds(Features& features, const std::string& question);
  std::shared_ptr<const CaptionPool> pool_for(const Task& task, const std::string& option);
  std::shared_ptr<const CaptionPool> own_pool();
  void guide_answer(const Features& features, Task& task);
  Tensor mean_prefix() const;
  void require_calibration(bool has, const std::string& action) const;
  void require_likelihood(const std::string& action) const;
  void measure(Features& features, Signals& signals);
  std::vector<double> output(Features& features, const Run& run);
  std::vector<double> probabilities(Features& features, std::vector<std::string> texts);
  bool judges() const { return calibrator_ && calibrator_->rates_statements(); }
  std::optional<Text> short_answer(Features& features, const std::string& question, const GenerationOptions& options);
  std::vector<double> answer_scores(Features& features, const std::string& question,
                                    const std::vector<std::string>& answers);
  std::shared_ptr<const Tensor> label_embeds(const std::shared_ptr<const Labels>& labels);
  Tensor embed_texts(const std::vector<std::string>& texts);
  Tensor itm_logits(const Features& features, const std::string& text);
  Compared likelihoods(Features& features, const std::vector<std::string>& texts);
  Compared yes_odds(Features& features, const std::vector<std::string>& questions);
  Compared compared(Features& features, const GainRun& run);

  const Bundle bundle_;
  const ModelOptions options_;
  const uint64_t number_;
  Graphs graphs_;
  Lazy<std::unique_ptr<LanguageModel>> language_;
  Lazy<std::unique_ptr<QFormerTokenizer>> text_tokenizer_, question_tokenizer_;
  Lazy<std::shared_ptr<const CaptionPool>> pool_;  // the bundle's own
  const std::optional<Calibrator> calibrator_;     // if the bundle matches
  ImageGain gain_;
  std::mutex mutex_;  // of what follows
  std::vector<std::string> embedded_labels_;
  std::shared_ptr<const Tensor> label_embeds_;
};

}  // namespace blip2rt
