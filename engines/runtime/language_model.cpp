// Steps generations of the language model, and asks it how likely texts are.
#include "runtime/language_model.h"

#include <chrono>
#include <cmath>
#include <utility>

namespace blip2rt {
namespace {

Prefix prefix_of(const Tensor& prefix_embeds) {
  return {prefix_embeds.values.data(), static_cast<int>(prefix_embeds.shape[0]),
          static_cast<int>(prefix_embeds.shape[1])};
}

LanguageSpec language_spec(const Manifest& manifest) {
  return {manifest.name, manifest.prompts, manifest.decoding,
          manifest.question ? std::optional(manifest.question->prompt) : std::nullopt};
}

}  // namespace

LanguageModel::LanguageModel(const Bundle& bundle, BundleGraphs& graphs, bool special_tokens)
    : Language(language_spec(bundle.manifest), bundle.file(bundle.manifest.llm->tokenizer),
               open_tokenizer(bundle.file(bundle.manifest.llm->tokenizer)), *bundle.manifest.llm, special_tokens),
      graphs_(graphs) {}

Texts LanguageModel::generate(const Tensor& prefix_embeds, const Task& task, Clock::time_point start,
                              const OnPiece& on_piece) const {
  GenerationOptions options = task.options;
  if (std::isfinite(options.max_time)) {
    options.max_time -= std::chrono::duration<double>(Clock::now() - start).count();
    if (options.max_time <= 0) throw too_late(task.options.max_time);
  }
  const Prefix prefix = prefix_of(prefix_embeds);
  const std::shared_ptr<const float> borrowed(std::shared_ptr<void>(), prefix.data);
  return named_failure([&] {
    const Generator& generator = this->generator();
    Generation generation(generator,
                          requests_of(generator, borrowed, prefix, {tokenizer().encode(task.prompt)}, options));
    return finish(generation, task, on_piece);
  });
}

Texts LanguageModel::finish(Generation& generation, const Task& task, const OnPiece& on_piece) const {
  const GenerationOptions& options = task.options;
  const bool streams = options.num_beams == 1 && options.num_return_sequences == 1;
  TextStream stream(tokenizer(), options.forced_prefix, task.single_line);
  StopCut cut(task.until);
  bool wanted = true;
  while (wanted && !generation.done()) {
    generation.step();
    if (!on_piece) continue;
    std::string piece;
    for (const NewToken& token : generation.added()) {
      if (streams) piece += cut.push(stream.push(token.token));
    }
    wanted = on_piece(piece);
  }
  if (on_piece && streams && wanted) {
    const std::string last = cut.push(stream.end());
    on_piece(last + cut.finish().second);
  }
  Texts texts;
  const auto results = generation.results();
  for (const Hypothesis& each : results.front()) {
    const bool timed_out = wanted && generation.is_cut(0, static_cast<int>(each.tokens.size()));
    Text text = text_of(each.tokens, static_cast<double>(each.score), options, task.single_line, timed_out);
    text.text = StopCut(task.until).finish(&text.text).first;
    texts.push_back(std::move(text));
  }
  const bool ended_early = !texts.empty() && texts.front().truncated && texts.front().tokens.size() < 2 &&
                           static_cast<int>(texts.front().tokens.size()) < options.max_new_tokens;
  if (ended_early) throw too_late(options.max_time);
  return texts;
}

Conversation::Conversation(const LanguageModel& language, const Tensor& prefix_embeds, CallerOptions options,
                           AnswerOrGuide answer, bool rewords)
    : language_(language),
      answer_(std::move(answer)),
      dialogue_(language, std::move(options), rewords),
      chat_(named_failure([&] {
        return Chat(language.generator(), prefix_of(prefix_embeds), dialogue_.max_beams(),
                    static_cast<int>(language.spec().max_positions));
      })) {}

Texts Conversation::ask(const std::string& question, const CallerOptions& options, const OnPiece& on_piece) {
  remember();
  Dialogue::Turn turn = dialogue_.begin(question, options);
  if (std::optional<Text> known = answer_(turn.task)) {
    dialogue_.answered(turn, known->tokens);
    if (on_piece) on_piece(known->text);
    return {std::move(*known)};
  }
  dialogue_.read(turn);
  return named_failure([&] {
    last_ = chat_.ask(turn.ids, turn.task.options);
    return language_.finish(*last_, turn.task, on_piece);
  });
}

// Counts the positions that the last answer used.
void Conversation::remember() {
  if (last_ == nullptr) return;
  const auto results = last_->results();
  last_ = nullptr;
  if (!results.empty() && !results[0].empty()) dialogue_.add_answer(results[0][0].tokens.size());
}

}  // namespace blip2rt
