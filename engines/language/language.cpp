// Checks texts and options before anything runs, and turns tokens into texts.
#include "language/language.h"

#include <algorithm>

#include "english/questions.h"
#include "english/spelling.h"
#include "english/text_forms.h"

namespace blip2rt {
namespace {

void append(std::vector<std::string>& parts, const char* what, int64_t tokens) {
  if (tokens != 0) parts.push_back(std::string(what) + " (" + std::to_string(tokens) + ")");
}

// Whether a stop string ended a text.
bool is_stopped(const LlmTokenizer& tokenizer, const Ids& tokens, const GenerationOptions& options) {
  if (options.stop_strings.empty()) return false;
  const std::string written = tokenizer.decode(tokens.data(), tokens.size(), false);
  return std::any_of(options.stop_strings.begin(), options.stop_strings.end(),
                     [&](const std::string& stop) { return written.find(stop) != std::string::npos; });
}

}  // namespace

Error too_late(double max_time) {
  return {ErrorKind::kTimeout,
          "max_time is " + number_text(max_time) + " seconds, which passed before the first word: allow more"};
}

Prompt Language::caption_prompt(const std::string* prompt) const {
  if (prompt != nullptr) return {"", *prompt, ""};
  const auto found = spec_.prompts.find("caption");
  return {found == spec_.prompts.end() ? "" : found->second, "", ""};
}

Prompt Language::ask_prompt(const std::string& question) const {
  check_text(question);
  const std::string_view text = stripped(question);
  if (text.empty()) {
    throw Error(ErrorKind::kArgument, "a question is empty: ask something, as in 'what colour is the dog?'");
  }
  const auto found = spec_.prompts.find("ask");
  const std::string form = found == spec_.prompts.end() ? "{}" : found->second;
  const size_t at = form.find("{}");
  if (at == std::string::npos) return {form, std::string(text), ""};
  return {form.substr(0, at), std::string(text), form.substr(at + 2)};
}

std::string Language::plain_question(const std::string& question) const {
  return blip2rt::plain_question(respelled(
      question, [&](const std::string& word) { return tokenizer_.encode_more({"", " " + word, ""}).size() == 1; }));
}

std::string Language::qformer_question(const std::string& question) const {
  if (!spec_.question) return "";
  const std::string asked(stripped(question));
  std::string read = *spec_.question;
  for (size_t at = read.find("{}"); at != std::string::npos; at = read.find("{}", at + asked.size())) {
    read.replace(at, 2, asked);
  }
  return read;
}

std::vector<std::string> Language::next_question() const {
  const std::string before(stripped(ask_prompt("?").before));
  return before.empty() ? std::vector<std::string>() : std::vector<std::string>{before};
}

Ids Language::forced_prefix(const CallerOptions& options, bool after_prompt) const {
  std::string text = options.forced_prefix();
  if (text.empty()) return {};
  const bool begins_with_space = stripped(first_characters(text, 1)).empty();
  if (after_prompt && !spec().encoder_decoder && !begins_with_space) text.insert(0, " ");
  return tokenizer_.encode_more({"", text, ""});
}

Room Language::room_for(int64_t prompt_length, int64_t forced_length, int64_t used) const {
  std::vector<std::string> parts;
  int64_t read = forced_length;
  if (spec().encoder_decoder) {  // its decoder reads neither image nor prompt
    read += 1;
    append(parts, "the first token", 1);
  } else {
    read += spec().prefix_length + used + prompt_length;
    append(parts, "the image", spec().prefix_length);
    append(parts, "what was said", used);
    append(parts, "the prompt", prompt_length);
  }
  append(parts, "the forced prefix", forced_length);
  return {spec().max_positions - read,
          joined(parts, ", ") + ", of " + std::to_string(spec().max_positions) + " tokens in all",
          used != 0 ? "start a new chat" : "shorten them"};
}

GenerationOptions Language::settings(const std::string& task, const CallerOptions& options,
                                     const std::vector<Prompt>& prompts, int64_t used) const {
  size_t longest = 0;
  bool after_prompt = false;
  for (const Prompt& prompt : prompts) {
    longest = std::max(longest, tokenizer_.encode(prompt).size());
    after_prompt = after_prompt || !prompt.whole().empty();
  }
  const Ids forced = forced_prefix(options, after_prompt);
  const Room room = room_for(static_cast<int64_t>(longest), static_cast<int64_t>(forced.size()), used);
  const auto found = spec_.decoding.find(task);
  const Decoding defaults = found == spec_.decoding.end() ? Decoding() : found->second;
  GenerationOptions settings = options.resolve(defaults, room);
  if (defaults.no_repeat_words) settings.repeated_words = tokenizer_.repeated_words();
  settings.eos_token_ids = spec().eos_token_ids;
  if (!spec().encoder_decoder) {  // as transformers' generate, which is given image and prompt as tokens too
    settings.counts_prompt = true;
    settings.image_token_id = spec().image_token_id.value_or(-1);
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
  if (used > 0) {
    for (const std::string& next : next_question()) settings.stop_strings.push_back(next);
  }
  if (!settings.stop_strings.empty()) settings.vocabulary = tokenizer_.vocabulary();
  return settings;
}

Text Language::text_of(const Ids& tokens, double score, const GenerationOptions& options, bool single_line,
                       bool timed_out) const {
  const Ids shown = tokenizer_.shown(tokens);
  const bool is_cut = timed_out || static_cast<int64_t>(tokens.size()) >= options.max_new_tokens;
  Ids whole = options.forced_prefix;
  whole.insert(whole.end(), shown.begin(), shown.end());
  std::string text = single_line ? tokenizer_.line(whole) : tokenizer_.text(whole);
  const bool truncated = is_cut && shown.size() == tokens.size() && !is_stopped(tokenizer_, tokens, options);
  return {std::move(text), score, shown, truncated};
}

std::pair<Ids, std::vector<Ids>> Language::caption_tokens(const std::vector<std::string>& texts, int64_t prefix_length,
                                                          int64_t max_tokens) const {
  const Prompt prompt = caption_prompt(nullptr);
  Ids prompt_ids = tokenizer_.encode(prompt);
  const bool decoder_only = !spec().encoder_decoder;
  const std::string before = decoder_only && !prompt.whole().empty() ? " " : "";  // as captions are in training
  const int64_t read = decoder_only ? prefix_length + static_cast<int64_t>(prompt_ids.size()) : 1;
  const int64_t room = spec().max_positions - read;
  const auto most = static_cast<size_t>(std::max<int64_t>(std::min(max_tokens, room) - 1, 0));
  std::vector<Ids> all;
  for (const std::string& text : texts) {
    Ids& ids = all.emplace_back(tokenizer_.encode_more({before, text, ""}));
    ids.resize(std::min(ids.size(), most));
    if (!spec().eos_token_ids.empty()) ids.push_back(spec().eos_token_ids.front());
  }
  return {std::move(prompt_ids), std::move(all)};
}

std::pair<std::vector<Ids>, std::vector<Ids>> Language::answer_tokens(const std::vector<std::string>& questions,
                                                                      const std::vector<std::string>& answers) const {
  std::vector<Ids> asked, all;
  size_t longest = 0;
  for (const std::string& question : questions) {
    longest = std::max(longest, asked.emplace_back(tokenizer_.encode(ask_prompt(question))).size());
  }
  const Room room = room_for(static_cast<int64_t>(longest), 0, 0);
  for (const std::string& answer : answers) {
    Ids& ids = all.emplace_back(tokenizer_.encode_more({" ", answer, ""}));
    if (!spec().eos_token_ids.empty()) ids.push_back(spec().eos_token_ids.front());
    if (static_cast<int64_t>(ids.size()) <= room.tokens) continue;
    throw Error(ErrorKind::kArgument, "an answer to compare has " + std::to_string(ids.size()) + " tokens, but only " +
                                          std::to_string(std::max<int64_t>(room.tokens, 0)) + " fit behind " +
                                          room.behind + ": " + room.fix);
  }
  return {std::move(asked), std::move(all)};
}

void Language::need_guidable(const Prompt& prompt) const {
  if (!prompt.text.empty()) {
    throw Error(ErrorKind::kArgument, "a pool guides whole captions: leave out the prompt, or the pool");
  }
  if (spec().eos_token_ids.empty()) {
    throw Error(ErrorKind::kArgument,
                "a pool guides captions that end with a token, which this model has not: leave it out");
  }
}

void Language::need_chat() const {
  const char* why = spec().encoder_decoder ? "its language model is an encoder-decoder"
                    : spec_.question       ? "its Q-Former reads the question together with the image"
                                           : nullptr;
  if (why == nullptr) return;
  throw Error(ErrorKind::kCapability,
              "bundle '" + spec_.name + "' cannot chat: " + why + "; use ask and repeat the conversation");
}

}  // namespace blip2rt
