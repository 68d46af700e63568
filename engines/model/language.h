// The language side of a model: prompts and options -> a generation -> texts. Given prefix_embeds, it does not know
// images. The C library's counterpart of blip2rt.language.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "loop/generation.h"
#include "model/graphs.h"
#include "model/options.h"
#include "model/text_stream.h"
#include "model/tokenizers.h"

namespace blip2rt {

struct Text {
  std::string text;
  double score;    // sum of log-probabilities, the stop token's included, over length^length_penalty
  Ids tokens;      // of the answer, without the stop token
  bool truncated;  // max_new_tokens or max_time ended the text, not the model
};

using Texts = std::vector<Text>;  // best first; draws in the order drawn

// Called after every token with the new part of the text that is final. Returns false to end the generation.
using OnPiece = std::function<bool(const std::string& piece)>;

// What is generated: a prompt, checked options, and the form of the texts.
struct Task {
  Prompt prompt;
  GenerationOptions options;
  bool single_line;     // as captions are
  std::string until{};  // the texts end before it; empty: to their end
};

class Language {
 public:
  // `bundle` and `graphs` must outlive it.
  Language(const Bundle& bundle, Graphs& graphs, bool special_tokens)
      : bundle_(bundle),
        spec_(*bundle.manifest.llm),
        graphs_(graphs),
        tokenizer_(bundle.file(spec_.tokenizer), open_tokenizer(bundle.file(spec_.tokenizer)), spec_, special_tokens) {}

  // The prompt that a caption continues: `prompt`, or null for the bundle's own; and a question in the bundle's
  // template.
  Prompt caption_prompt(const std::string* prompt) const;
  Prompt ask_prompt(const std::string& question) const;

  // What begins the next question of a conversation, as the template does: an answer ends before it. May be empty.
  std::string next_question() const;

  // Options for a task ("caption", "ask") behind a prompt, if there is one. `used`: positions that a conversation has
  // taken, besides the image's and the prompt's. Throws Error with all faults.
  GenerationOptions settings(const std::string& task, const TextOptions& options, const Prompt* prompt,
                             int64_t used = 0) const;

  // prefix_embeds (1, Q, D) -> texts. `start`: when max_time began to run. Throws Error.
  Texts generate(const Tensor& prefix_embeds, const Task& task, Clock::time_point start, const OnPiece& on_piece) const;

  // Steps a generation to its end, and returns its texts.
  Texts finish(Generation& generation, const Task& task, const OnPiece& on_piece) const;

  // A text with its stop token, behind the bundle's caption prompt. `max_tokens`: of both; the rest is cut off.
  Ids caption_tokens(const std::string& text, int64_t max_tokens) const;

  // log p(text | image, prompt) of texts behind [prefix][prompt]: prefixes (1, Q, D), each with its prompt; `images`:
  // the prompt of each text.
  std::vector<double> likelihoods(const std::vector<const Tensor*>& prefixes, const Prompts& prompts,
                                  const std::vector<size_t>& images, const Prompts& texts) const;

  // log p(answer | image, question) of all answers for the first of prefix_embeds (1, Q, D), then for the next one.
  std::vector<double> answer_likelihoods(const std::vector<const Tensor*>& prefixes, const std::string& question,
                                         const std::vector<std::string>& answers) const;

  // Throws Error for a model whose earlier steps see each question, so that no cache can keep them.
  void need_chat() const;

  const LlmTokenizer& tokenizer() const { return tokenizer_; }
  const LlmSpec& spec() const { return spec_; }
  const Generator& generator() const { return graphs_.generator(); }

 private:
  Ids forced_prefix(const TextOptions& options, bool after_prompt) const;
  bool is_stopped(const Ids& tokens, const GenerationOptions& options) const;

  const Bundle& bundle_;
  const LlmSpec& spec_;
  Graphs& graphs_;
  LlmTokenizer tokenizer_;
};

// Runs what generates, with the core's errors as Error.
template <class Work>
auto named_failure(Work work) {
  try {
    return work();
  } catch (const Error&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kBackend, std::string("generation failed: ") + error.what());
  }
}

Error too_late(double max_time);

// A question's task -> its answer, if that needs no language model; else the task gets its guides.
using Judge = std::function<std::optional<Text>(Task& task)>;

// A conversation about one image. One thread uses it at a time.
class Conversation {
 public:
  // prefix_embeds (1, Q, D); `options` are the defaults of every question. `language` must outlive it.
  Conversation(const Language& language, const Tensor& prefix_embeds, TextOptions options, Judge judge);

  Texts ask(const std::string& question, const TextOptions& options, const OnPiece& on_piece);

 private:
  void remember();

  const Language& language_;
  const TextOptions options_;
  const Judge judge_;
  const int max_beams_;
  Chat chat_;
  Ids unread_;        // of judged questions and their answers, for the next question
  int64_t used_ = 0;  // positions, besides the image's
  std::shared_ptr<Generation> last_;
  int64_t last_read_ = 0;  // positions that the last question read
};

}  // namespace blip2rt
