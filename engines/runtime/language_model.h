// The language side with its graphs, for callers without Python: prompts and options -> a generation -> texts. Given
// prefix_embeds, it does not know images.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "language/dialogue.h"
#include "language/language.h"
#include "loop/generation.h"
#include "runtime/graphs.h"

namespace blip2rt {

// Called after every token with the new part of the text that is final. Returns false to end the generation.
using OnPiece = std::function<bool(const std::string& piece)>;

class LanguageModel : public Language {
 public:
  // `graphs` must outlive it. Throws Error.
  LanguageModel(const Bundle& bundle, BundleGraphs& graphs, bool special_tokens);

  // prefix_embeds (1, Q, D) -> texts. `start`: when max_time began to run. Throws Error.
  Texts generate(const Tensor& prefix_embeds, const Task& task, Clock::time_point start, const OnPiece& on_piece) const;

  // Steps a generation to its end, and returns its texts.
  Texts finish(Generation& generation, const Task& task, const OnPiece& on_piece) const;

  const Generator& generator() const { return *graphs_.generator(); }

 private:
  BundleGraphs& graphs_;  // which keep what they return
};

// A question's task -> its answer, if that needs no language model; else the task gets its guides.
using AnswerOrGuide = std::function<std::optional<Text>(Task& task)>;

// A conversation about one image. One thread uses it at a time.
class Conversation {
 public:
  // prefix_embeds (1, Q, D); `options` are the defaults of every question. `language` must outlive it.
  Conversation(const LanguageModel& language, const Tensor& prefix_embeds, CallerOptions options, AnswerOrGuide answer,
               bool rewords);

  Texts ask(const std::string& question, const CallerOptions& options, const OnPiece& on_piece);

 private:
  void remember();

  const LanguageModel& language_;
  const AnswerOrGuide answer_;
  Dialogue dialogue_;
  Chat chat_;
  std::shared_ptr<Generation> last_;
};

}  // namespace blip2rt
