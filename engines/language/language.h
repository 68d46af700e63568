// The language side of a model without its graphs: prompts, checked options, and tokens as texts.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"
#include "language/options.h"
#include "language/text_stream.h"
#include "language/tokenizers.h"

namespace blip2rt {

struct Text {
  std::string text;
  double score;    // sum of log-probabilities, the stop token's included, over length^length_penalty
  Ids tokens;      // of the answer, without the stop token
  bool truncated;  // max_new_tokens or max_time ended the text, not the model
};

using Texts = std::vector<Text>;  // best first; draws in the order drawn

// What is generated: a prompt, checked options, and the form of the texts.
struct Task {
  Prompt prompt;
  GenerationOptions options;
  bool single_line;                  // as captions are
  std::vector<std::string> until{};  // the texts end before the first of these
};

// What a manifest says about language besides the model's shape.
struct LanguageSpec {
  std::string name;  // of the bundle
  std::map<std::string, std::string> prompts;
  std::map<std::string, Decoding> decoding;
  std::optional<std::string> question;  // what a Q-Former reads for a question, which takes the place of "{}"
};

class Language {
 public:
  // `file` and the rest: see LlmTokenizer.
  Language(LanguageSpec spec, std::string file, std::shared_ptr<const Tokenizer> tokenizer, LlmSpec llm,
           bool special_tokens)
      : spec_(std::move(spec)), tokenizer_(std::move(file), std::move(tokenizer), std::move(llm), special_tokens) {}

  // The prompt that a caption continues: `prompt`, or null for the bundle's own; and a question in the bundle's
  // template.
  Prompt caption_prompt(const std::string* prompt) const;
  Prompt ask_prompt(const std::string& question) const;

  // What a Q-Former reads for a question; empty if it reads none.
  std::string qformer_question(const std::string& question) const;

  // A question without misspelt words and role labels: see english/questions.h. Words are the tokenizer's whole ones.
  std::string plain_question(const std::string& question) const;

  // What begins the next question of a conversation, as the template does: an answer ends before it. At most one text.
  std::vector<std::string> next_question() const;

  // Options for a task ("caption", "ask") behind the longest of some prompts. `used`: positions that a conversation has
  // taken, besides the image's and the prompt's. Throws Error with all faults.
  GenerationOptions settings(const std::string& task, const CallerOptions& options, const std::vector<Prompt>& prompts,
                             int64_t used = 0) const;

  // Tokens of the option forced_prefix. After a prompt it starts a new word, as answers do in training.
  Ids forced_prefix(const CallerOptions& options, bool after_prompt) const;

  // A generated text. `single_line`: see Task. `timed_out`: whether max_time ended it.
  Text text_of(const Ids& tokens, double score, const GenerationOptions& options, bool single_line,
               bool timed_out) const;

  // The tokens of the bundle's own prompt, and of texts as its captions behind prefix_embeds (1, prefix_length, D).
  // `max_tokens`: of a text with its stop token; the rest is cut off.
  std::pair<Ids, std::vector<Ids>> caption_tokens(const std::vector<std::string>& texts, int64_t prefix_length,
                                                  int64_t max_tokens) const;

  // The tokens of questions, and of answers with a stop token. Throws Error if an answer does not fit behind a
  // question.
  std::pair<std::vector<Ids>, std::vector<Ids>> answer_tokens(const std::vector<std::string>& questions,
                                                              const std::vector<std::string>& answers) const;

  // Throws Error for a caption that no pool can guide.
  void need_guidable(const Prompt& prompt) const;

  // Throws Error for a model whose earlier steps see each question, so that no cache can keep them.
  void need_chat() const;

  const LlmTokenizer& tokenizer() const { return tokenizer_; }
  const LlmSpec& spec() const { return tokenizer_.spec(); }

 private:
  Room room_for(int64_t prompt_length, int64_t forced_length, int64_t used) const;

  const LanguageSpec spec_;
  const LlmTokenizer tokenizer_;
};

Error too_late(double max_time);

}  // namespace blip2rt
