// Takes a step of the batch. Reads top to bottom as a step goes.
#include <algorithm>
#include <utility>

#include "loop/batch.h"
#include "ort/active_call.h"

namespace blip2rt {

void Batch::step() {
  const ActiveCall call;
  added_.clear();
  admit();
  encode();
  if (running_.empty()) return;
  const bool together = choose_readers();
  try {
    if (together) {
      read_spans();
    } else {
      run_rows();
    }
  } catch (...) {
    for (Running& one : running_) {
      if (one.first_row >= 0) finish(one, std::current_exception());
    }
    drop_ended();
    return;
  }
  ++counters_.steps;
  for (Running& one : running_) {
    if (one.first_row < 0) continue;
    try {
      advance(one);
    } catch (...) {
      finish(one, std::current_exception());
    }
  }
  drop_ended();
}

// Runs the encoder for new requests: for all together if each has a row of the pool, otherwise for one a step.
void Batch::encode() {
  readers_.clear();
  for (Running& one : running_) {
    if (!one.encoded && (readers_.empty() || sizes_.encoder_rows > 1)) readers_.push_back(&one);
  }
  if (readers_.empty()) return;
  try {
    std::vector<PromptSpan> spans;
    for (const Running* one : readers_) {
      const Request& request = one->request();
      spans.push_back({request.prefix.get(), request.prefix_length, request.prompt.data(),
                       static_cast<int>(request.prompt.size()), context_of(*one, 0, 0)});
    }
    decoder_->encode(spans);
    for (Running* one : readers_) one->encoded = true;
  } catch (...) {
    for (Running* one : readers_) finish(*one, std::current_exception());
    drop_ended();
  }
}

// Chooses whose prompts this step reads, and how much of each. Returns whether it reads nothing else, each as a row of
// a matrix. Otherwise each position becomes a row beside the answers.
bool Batch::choose_readers() {
  readers_.clear();
  int left = sizes_.read, longest = 0;
  bool decodes = false;
  for (Running& one : running_) {
    one.first_row = -1;
    decodes = decodes || one.fed >= 0;
    const int unread = one.prompt_length() - one.read;
    if (one.fed >= 0 || !one.encoded || left == 0) continue;
    one.span = std::min(unread, left);
    left -= one.span;
    longest = std::max(longest, one.span);
    readers_.push_back(&one);
  }
  if (readers_.empty()) return false;
  if (generator_.rows().rows > 0) return true;  // such an engine reads each prompt by itself
  if (decodes) return false;
  // Padding stays within the request's own positions, and within those that the model has: a span that does not begin
  // at 0 may end close to the last one.
  const auto has_room = [longest](const Running* one) {
    const int end = one->read + longest;
    return end <= one->count && (one->read == 0 || end <= one->prompt_length() + one->options().max_new_tokens);
  };
  return static_cast<int64_t>(readers_.size()) * longest <= sizes_.read &&
         std::all_of(readers_.begin(), readers_.end(), has_room);
}

void Batch::read_spans() {
  for (size_t i = 0; i < readers_.size(); ++i) readers_[i]->first_row = readers_[i]->last_row = static_cast<int>(i);
  if (generator_.rows().rows > 0) return read_each();
  std::vector<PromptSpan> spans;
  for (const Running* one : readers_) spans.push_back(span_of(*one));
  decoder_->read(spans);
  for (Running* one : readers_) one->read += one->span;
}

void Batch::read_each() {
  for (Running* one : readers_) {
    try {
      decoder_->read({span_of(*one)}, one->first_row);
      one->read += one->span;
    } catch (...) {
      finish(*one, std::current_exception());
    }
  }
}

// Returns the next positions of a prompt.
PromptSpan Batch::span_of(const Running& one) const {
  const Request& request = one.request();
  const auto width = static_cast<size_t>(generator_.shape().hidden_size);
  const int at = one.read - request.past;  // within prefix and tokens
  const int embeds = std::clamp(one.prefix_length - at, 0, one.span);
  const int first_token = std::max(0, at - one.prefix_length);
  Context context = context_of(one, 0, 0);
  context = {0, 0, one.start, one.read, context.encoder_start, context.encoder_length};
  return {request.prefix.get() + static_cast<size_t>(embeds > 0 ? at : 0) * width, embeds,
          one.tokens.data() + first_token, one.span - embeds, context};
}

// Returns where the positions of an answer's row begin. A single row lies behind its prompt; several lie there one
// after the other, or each behind its own copy of the prompt.
int Batch::answer_start(const Running& one, int row) const {
  const int distance = generator_.rows().rows > 0 ? generator_.rows().capacity : one.options().max_new_tokens;
  return one.start + one.prompt_length() + row * distance;
}

// Returns what a row of an answer attends to. Several rows share the prompt, unless each has its own.
Context Batch::context_of(const Running& one, int row, int before) const {
  const int prompt = one.prompt_length(), start = answer_start(one, row);
  const Request& request = one.request();
  const int encoder_length =
      generator_.encoder() == nullptr ? 0 : request.prefix_length + static_cast<int>(request.prompt.size());
  if (one.options().rows_each() == 1 || generator_.rows().rows > 0) {
    return {0, 0, start - prompt, prompt + before, one.encoder_start, encoder_length};
  }
  return {one.start, prompt, start, before, one.encoder_start, encoder_length};
}

void Batch::run_rows() {
  decoder_->clear();
  for (Running& one : running_) {
    if (one.fed >= 0) add_answers(one);
  }
  for (Running* one : readers_) add_span(*one);
  if (decoder_->rows() > 0) decoder_->step();  // none if the encoder has failed
}

// Adds a row for each unfinished answer, or each of its beams.
void Batch::add_answers(Running& one) {
  one.first_row = decoder_->rows();
  for (const Answer& answer : one.answers) {
    for (int beam = 0; beam < one.options().num_beams; ++beam) {
      decoder_->add(answer.search->token(beam), context_of(one, static_cast<int>(answer.draw) + beam, one.fed), true);
    }
  }
  one.last_row = decoder_->rows() - 1;
}

// Adds a row for each of the next positions of the prompt, of which the last may be asked for its logits.
void Batch::add_span(Running& one) {
  const auto width = static_cast<size_t>(generator_.shape().hidden_size);
  PromptSpan span = span_of(one);
  one.first_row = decoder_->rows();
  for (int i = 0; i < one.span; ++i, ++span.context.before) {
    const bool last = i + 1 == one.span;
    if (i < span.embed_count) {
      decoder_->add(span.embeds + static_cast<size_t>(i) * width, span.context, last);
    } else {
      decoder_->add(span.tokens[i - span.embed_count], span.context, last);
    }
  }
  one.last_row = decoder_->rows() - 1;
  one.read += one.span;
}

// Advances a request by the logits of the run.
void Batch::advance(Running& one) {
  if (one.fed < 0 && one.read < one.prompt_length()) return;
  const bool last = Clock::now() >= one.ticket->deadline();
  one.timed_out = one.timed_out || last;
  const size_t before = added_.size();
  if (one.fed < 0) {
    save_prefix(one, {});
    choose_first(one, last);
  } else {
    choose_next(one, last);
  }
  one.ticket->push(added_.data() + before, added_.size() - before);
  for (Answer& answer : one.answers) {
    if (answer.search->done()) one.finished[answer.draw] = answer.search->results();
  }
  const auto done = [](const Answer& answer) { return answer.search->done(); };
  one.answers.erase(std::remove_if(one.answers.begin(), one.answers.end(), done), one.answers.end());
  if (one.answers.empty()) finish(one);
}

// Chooses every answer's first token by the logits of the prompt's last position, which all answers share.
void Batch::choose_first(Running& one, bool last) {
  one.fed = 0;
  for (int row = 1; row < one.options().rows_each(); ++row) {
    decoder_->share(one.start, answer_start(one, row) - one.prompt_length(), one.prompt_length());
  }
  float* logits = decoder_->logits(one.last_row);
  for (size_t i = 0; i + 1 < one.answers.size(); ++i) {  // a search overwrites what it reads
    scores_.assign(logits, logits + generator_.shape().vocab_size);
    choose(one, one.answers[i], scores_.data(), 1, last);
  }
  choose(one, one.answers.back(), logits, 1, last);
}

void Batch::choose_next(Running& one, bool last) {
  ++one.fed;
  const int beams = one.options().num_beams;
  int row = one.first_row;
  for (Answer& answer : one.answers) {
    choose(one, answer, decoder_->logits(row), beams, last);
    row += beams;
  }
  if (beams == 1 || one.answers.front().search->done()) return;
  for (int beam = 0; beam < beams; ++beam) {  // a beam takes over its parent's positions
    const int parent = one.answers.front().search->parent(beam);
    decoder_->cache().copy_positions(answer_start(one, parent), answer_start(one, beam), one.fed);
  }
}

void Batch::choose(Running& one, Answer& answer, float* scores, int rows, bool last) {
  answer.search->advance(scores, rows, last);
  ++counters_.tokens;
  if (one.options().num_beams > 1 && one.options().num_return_sequences > 1) return;
  for (const Tokens settled = answer.search->settled(); answer.told < settled.count; ++answer.told) {
    added_.push_back({one.request().number, answer.draw, settled.first[answer.told]});
  }
}

}  // namespace blip2rt
