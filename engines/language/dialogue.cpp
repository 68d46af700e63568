#include "language/dialogue.h"

#include <utility>

namespace blip2rt {

Dialogue::Dialogue(const Language& language, CallerOptions options, bool rewords)
    : language_(language),
      options_(std::move(options)),
      rewords_(rewords),
      max_beams_(language.settings("ask", options_, {}).num_beams) {}

Dialogue::Turn Dialogue::begin(const std::string& question, const CallerOptions& options) const {
  const LlmTokenizer& tokenizer = language_.tokenizer();
  const int64_t used = used_ + static_cast<int64_t>(unread_.size());
  Turn turn{{language_.ask_prompt(rewords_ ? language_.plain_question(question) : question), {}, false}, unread_};
  Prompt more = turn.task.prompt;
  more.before.insert(0, " ");  // it continues the conversation
  const Ids ids = used == 0 ? tokenizer.encode(turn.task.prompt) : tokenizer.encode_more(more);
  turn.ids.insert(turn.ids.end(), ids.begin(), ids.end());
  turn.task.options = language_.settings("ask", options.over(options_), {turn.task.prompt}, used);
  if (used > 0) turn.task.until = language_.next_question();
  const GenerationOptions& chosen = turn.task.options;
  if (chosen.num_return_sequences > 1 || chosen.num_beams > max_beams_) {
    throw Error(ErrorKind::kArgument, "num_captions is " + std::to_string(chosen.num_return_sequences) +
                                          " and num_beams " + std::to_string(chosen.num_beams) +
                                          ": this chat gives 1 answer, of at most " + std::to_string(max_beams_) +
                                          " beams; say more when the chat begins");
  }
  return turn;
}

void Dialogue::read(const Turn& turn) {
  unread_.clear();
  reading_ = static_cast<int64_t>(turn.ids.size() + turn.task.options.forced_prefix.size());
}

void Dialogue::answered(const Turn& turn, const Ids& answer) {
  unread_ = turn.ids;
  unread_.insert(unread_.end(), answer.begin(), answer.end());
}

void Dialogue::add_answer(size_t tokens) {
  used_ += reading_ + static_cast<int64_t>(tokens);
  reading_ = 0;
}

}  // namespace blip2rt
