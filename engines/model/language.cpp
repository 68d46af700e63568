// Checks texts and options before anything runs, steps generations, and turns tokens into texts.
#include "model/language.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <utility>

#include "loop/likelihood.h"
#include "model/text_forms.h"

namespace blip2rt {
namespace {

Prefix prefix_of(const Tensor& prefix_embeds) {
  return {prefix_embeds.values.data(), static_cast<int>(prefix_embeds.shape[0]),
          static_cast<int>(prefix_embeds.shape[1])};
}

constexpr uint64_t kMaxTokenizerBytes = 256 << 20;  // Gemma's has 33 MB

void append(std::vector<std::string>& parts, const char* what, int64_t tokens) {
  if (tokens != 0) parts.push_back(std::string(what) + " (" + std::to_string(tokens) + ")");
}

}  // namespace

std::shared_ptr<const Tokenizer> open_tokenizer(const std::string& file) {
  try {
    return std::make_shared<const Tokenizer>(read_regular(file, kMaxTokenizerBytes));
  } catch (const TokenizerError& error) {
    const bool unsafe = error.kind == TokenizerError::kUnsafe;
    throw Error(ErrorKind::kModel,
                file + (unsafe ? " is not a safe tokenizer: " : " is not a tokenizer: ") + error.what());
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kModel, file + " is not a tokenizer: " + error.what());
  }
}

Error too_late(double max_time) {
  char seconds[32];
  std::snprintf(seconds, sizeof seconds, "%g", max_time);
  return {ErrorKind::kTimeout,
          std::string("max_time is ") + seconds + " seconds, which passed before the first word: allow more"};
}

Prompt Language::caption_prompt(const std::string* prompt) const {
  if (prompt != nullptr) return {"", *prompt, ""};
  const auto found = bundle_.manifest.prompts.find("caption");
  return {found == bundle_.manifest.prompts.end() ? "" : found->second, "", ""};
}

Prompt Language::ask_prompt(const std::string& question) const {
  check_text(question);
  const std::string_view text = stripped(question);
  if (text.empty()) {
    throw Error(ErrorKind::kArgument, "a question is empty: ask something, as in 'what colour is the dog?'");
  }
  const auto found = bundle_.manifest.prompts.find("ask");
  const std::string form = found == bundle_.manifest.prompts.end() ? "{}" : found->second;
  const size_t at = form.find("{}");
  if (at == std::string::npos) return {form, std::string(text), ""};
  return {form.substr(0, at), std::string(text), form.substr(at + 2)};
}

// After a prompt the forced prefix starts a new word, as answers do in training.
Ids Language::forced_prefix(const TextOptions& options, bool after_prompt) const {
  std::string text = options.forced_prefix();
  if (text.empty()) return {};
  const bool begins_with_space = stripped(first_characters(text, 1)).empty();
  if (after_prompt && !spec_.encoder_decoder && !begins_with_space) text.insert(0, " ");
  return tokenizer_.encode_more({"", text, ""});
}

std::string Language::next_question() const {
  const std::string before = ask_prompt("?").before;
  const size_t first = before.find_first_not_of(" \t\n");
  return first == std::string::npos ? "" : before.substr(first, before.find_last_not_of(" \t\n") + 1 - first);
}

GenerationOptions Language::settings(const std::string& task, const TextOptions& options, const Prompt* prompt,
                                     int64_t used) const {
  const auto length = [](const Ids& ids) { return static_cast<int64_t>(ids.size()); };
  const int64_t prompt_length = prompt == nullptr ? 0 : length(tokenizer_.encode(*prompt));
  const Ids forced = forced_prefix(options, prompt != nullptr && !prompt->whole().empty());
  std::vector<std::string> parts;
  int64_t read = length(forced);
  if (spec_.encoder_decoder) {  // its decoder reads neither image nor prompt
    read += 1;
    append(parts, "the first token", 1);
  } else {
    read += spec_.prefix_length + used + prompt_length;
    append(parts, "the image", spec_.prefix_length);
    append(parts, "what was said", used);
    append(parts, "the prompt", prompt_length);
  }
  append(parts, "the forced prefix", length(forced));
  const Room room{spec_.max_positions - read,
                  joined(parts, ", ") + ", of " + std::to_string(spec_.max_positions) + " tokens in all",
                  used != 0 ? "start a new chat" : "shorten them"};
  const auto defaults = bundle_.manifest.decoding.find(task);
  GenerationOptions settings =
      options.resolve(defaults == bundle_.manifest.decoding.end() ? Decoding() : defaults->second, room);
  settings.eos_token_ids = spec_.eos_token_ids;
  if (!spec_.encoder_decoder) {  // as transformers' generate, which is given image and prompt as tokens too
    settings.counts_prompt = true;
    settings.image_token_id = spec_.image_token_id.value_or(-1);
  }
  settings.forced_prefix = forced;
  for (const std::string& word : options.bad_words()) {
    for (const std::string& text : {word, " " + word}) {
      Ids ids = tokenizer_.encode_more({"", text, ""});
      if (!ids.empty()) settings.bad_words_ids.push_back(std::move(ids));
    }
  }
  settings.stop_strings = options.stop_strings();
  if (settings.min_new_tokens > 1) {  // without a stop token, a chat model would begin the next turn
    for (const auto& [id, name] : tokenizer_.turns()) settings.stop_strings.push_back(name);
  }
  const std::string next = next_question();
  if (used > 0 && !next.empty()) settings.stop_strings.push_back(next);
  if (!settings.stop_strings.empty()) settings.vocabulary = tokenizer_.vocabulary();
  return settings;
}

Texts Language::generate(const Tensor& prefix_embeds, const Task& task, Clock::time_point start,
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
                          requests_of(generator, borrowed, prefix, {tokenizer_.encode(task.prompt)}, options));
    return finish(generation, task, on_piece);
  });
}

Texts Language::finish(Generation& generation, const Task& task, const OnPiece& on_piece) const {
  const GenerationOptions& options = task.options;
  const bool streams = options.num_beams == 1 && options.num_return_sequences == 1;
  TextStream stream(tokenizer_, options.forced_prefix, task.single_line);
  const std::vector<std::string> until = task.until.empty() ? std::vector<std::string>() : std::vector{task.until};
  StopCut cut(until);
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
    const Ids shown = tokenizer_.shown(each.tokens);
    const auto length = static_cast<int>(each.tokens.size());
    const bool is_cut = length >= options.max_new_tokens || (wanted && generation.is_cut(0, length));
    Ids whole = options.forced_prefix;
    whole.insert(whole.end(), shown.begin(), shown.end());
    const std::string text = task.single_line ? tokenizer_.line(whole) : tokenizer_.text(whole);
    texts.push_back({StopCut(until).finish(&text).first, each.score, shown,
                     is_cut && shown.size() == each.tokens.size() && !is_stopped(each.tokens, options)});
  }
  const bool ended_early = !texts.empty() && texts.front().truncated && texts.front().tokens.size() < 2 &&
                           static_cast<int>(texts.front().tokens.size()) < options.max_new_tokens;
  if (ended_early) throw too_late(options.max_time);
  return texts;
}

// Whether a stop string ended a text.
bool Language::is_stopped(const Ids& tokens, const GenerationOptions& options) const {
  if (options.stop_strings.empty()) return false;
  const std::string written = tokenizer_.decode(tokens.data(), tokens.size(), false);
  return std::any_of(options.stop_strings.begin(), options.stop_strings.end(),
                     [&](const std::string& stop) { return written.find(stop) != std::string::npos; });
}

Ids Language::caption_tokens(const std::string& text, int64_t max_tokens) const {
  const Prompt prompt = caption_prompt(nullptr);
  const bool decoder_only = !spec_.encoder_decoder;
  const std::string before = decoder_only && !prompt.whole().empty() ? " " : "";  // as captions are in training
  const int64_t read = decoder_only ? spec_.prefix_length + static_cast<int64_t>(tokenizer_.encode(prompt).size()) : 1;
  const auto most = static_cast<size_t>(std::max<int64_t>(std::min(max_tokens, spec_.max_positions - read) - 1, 0));
  Ids ids = tokenizer_.encode_more({before, text, ""});
  ids.resize(std::min(ids.size(), most));
  if (!spec_.eos_token_ids.empty()) ids.push_back(spec_.eos_token_ids.front());
  return ids;
}

std::vector<double> Language::answer_likelihoods(const std::vector<const Tensor*>& prefixes,
                                                 const std::string& question,
                                                 const std::vector<std::string>& answers) const {
  std::vector<size_t> images;
  Prompts texts;
  for (size_t image = 0; image < prefixes.size(); ++image) {
    for (const std::string& answer : answers) {
      images.push_back(image);
      texts.push_back(tokenizer_.encode_more({" ", answer, ""}));
      if (!spec_.eos_token_ids.empty()) texts.back().push_back(spec_.eos_token_ids.front());
    }
  }
  return likelihoods(prefixes, Prompts(prefixes.size(), tokenizer_.encode(ask_prompt(question))), images, texts);
}

std::vector<double> Language::likelihoods(const std::vector<const Tensor*>& prefixes, const Prompts& prompts,
                                          const std::vector<size_t>& images, const Prompts& texts) const {
  std::vector<float> embeds;
  for (const Tensor* prefix : prefixes) embeds.insert(embeds.end(), prefix->values.begin(), prefix->values.end());
  const Prefix prefix{embeds.data(), static_cast<int>(prefixes.size()), static_cast<int>(prefixes.front()->shape[1])};
  return named_failure([&] { return blip2rt::likelihoods(generator(), prefix, prompts, images, texts, [] {}); });
}

void Language::need_chat() const {
  const char* why = spec_.encoder_decoder       ? "its language model is an encoder-decoder"
                    : bundle_.manifest.question ? "its Q-Former reads the question together with the image"
                                                : nullptr;
  if (why == nullptr) return;
  throw Error(ErrorKind::kModel,
              "bundle '" + bundle_.manifest.name + "' cannot chat: " + why + "; use ask and repeat the conversation");
}

Conversation::Conversation(const Language& language, const Tensor& prefix_embeds, TextOptions options, Judge judge)
    : language_(language),
      options_(std::move(options)),
      judge_(std::move(judge)),
      max_beams_(language.settings("ask", options_, nullptr).num_beams),
      chat_(named_failure([&] {
        return Chat(language.generator(), prefix_of(prefix_embeds), max_beams_,
                    static_cast<int>(language.spec().max_positions));
      })) {}

Texts Conversation::ask(const std::string& question, const TextOptions& options, const OnPiece& on_piece) {
  remember();
  const LlmTokenizer& tokenizer = language_.tokenizer();
  Task task{language_.ask_prompt(question), {}, false};
  Prompt more = task.prompt;
  more.before.insert(0, " ");  // it continues the conversation
  const auto unread = static_cast<int64_t>(unread_.size());
  Ids ids = unread_;
  for (const int64_t id : used_ + unread == 0 ? tokenizer.encode(task.prompt) : tokenizer.encode_more(more)) {
    ids.push_back(id);
  }
  task.options = language_.settings("ask", options.over(options_), &task.prompt, used_ + unread);
  if (used_ + unread > 0) task.until = language_.next_question();
  if (task.options.num_return_sequences > 1 || task.options.num_beams > max_beams_) {
    throw Error(ErrorKind::kArgument, "num_captions is " + std::to_string(task.options.num_return_sequences) +
                                          " and num_beams " + std::to_string(task.options.num_beams) +
                                          ": this chat gives 1 answer, of at most " + std::to_string(max_beams_) +
                                          " beams; say more when the chat begins");
  }
  if (std::optional<Text> judged = judge_(task)) {
    unread_ = std::move(ids);
    unread_.insert(unread_.end(), judged->tokens.begin(), judged->tokens.end());
    if (on_piece) on_piece(judged->text);
    return {std::move(*judged)};
  }
  unread_.clear();
  return named_failure([&] {
    last_ = chat_.ask(ids, task.options);
    last_read_ = static_cast<int64_t>(ids.size() + task.options.forced_prefix.size());
    return language_.finish(*last_, task, on_piece);
  });
}

// Counts the positions that the last answer used.
void Conversation::remember() {
  if (last_ == nullptr) return;
  const auto results = last_->results();
  last_ = nullptr;
  if (!results.empty() && !results[0].empty()) {
    used_ += last_read_ + static_cast<int64_t>(results[0][0].tokens.size());
  }
}

}  // namespace blip2rt
