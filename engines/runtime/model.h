// A bundle that captions, answers, matches and embeds: the order of things for C, as blip2rt.pipeline has it for
// Python. Any thread may use a model.
//
//     image -> pixels -> vision_features -> query_output -> prefix_embeds -> token ids -> text
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/lazy.h"
#include "bundle/bundle.h"
#include "media/image.h"
#include "runtime/graphs.h"
#include "runtime/judge.h"
#include "runtime/language_model.h"

namespace blip2rt {

struct ModelOptions {
  GraphRules graphs;
  ImageRules images;
  bool special_tokens = true, verify = false;
  std::optional<bool> core;  // whether the executor runs the graphs; unset: where it is at least as fast
  std::function<bool()> find_onnxruntime = [] { return true; };  // false: there is none, and the executor runs all
};

// A picture, resized for a model.
struct PreparedImage {
  uint64_t model;            // its number
  std::vector<uint8_t> rgb;  // (height, width, 3)
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
  double confidence(Features& features, const Text& caption);  // NaN if it has no words
  // The number of the choice that answers a question best.
  size_t choose(Features& features, const std::string& question, const std::vector<std::string>& choices);
  // The likeliest labels, at most `top`, as "animal|cat", with their probabilities as scores.
  Texts tag(Features& features, const std::shared_ptr<const Labels>& labels, size_t top, double threshold);
  Tensor embed_image(Features& features);      // (1, Q, E)
  Tensor embed_text(const std::string& text);  // (1, E)

 private:
  ImageTarget target() const;
  void require_own(uint64_t model, const char* what) const;
  LanguageModel& language();
  Tensor prefix_embeds(Features& features, const std::string& question);
  std::shared_ptr<const CaptionPool> pool_for(const Task& task, const std::string& option);
  void guide_answer(Features& features, Task& task);
  std::optional<Text> short_answer(Features& features, const std::string& question, const GenerationOptions& options);

  const Bundle bundle_;
  const ModelOptions options_;
  const uint64_t number_;
  BundleGraphs graphs_;
  Lazy<std::unique_ptr<LanguageModel>> language_;
  Judge judge_;
};

}  // namespace blip2rt
