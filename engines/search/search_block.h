// Chooses the tokens of one answer by greedy search, sampling, beam search or beam sampling, with the meaning of
// Hugging Face's `generate`. The whole state is one block of memory, so that a step allocates nothing. It reads a row
// of scores through a `Reader`, in vector code:
//
//   measure(scores)                    reads a row, before all calls below; throws for NaN or +inf
//   largest(), log_sum()               the measured row's largest score and log(sum(exp(score - largest)))
//   argmax(scores)                     returns the first token with the largest score
//   normalise(scores)                  replaces a measured row by its log-probabilities
//   remeasure(scores)                  reads a normalised row again after some scores were changed
//   offer(scores, base, row, block)    offers at least the relevant tokens with the score base + log-probability
//   sampler()                          returns the memory of sampling
//   top_k_bound(scores, n)             returns the Bound of the n largest scores, including ties with the last
//   nucleus(scores, row, p, within, count)  returns the Bound of the likeliest tokens that reach p of the weight that
//                                      `within` leaves; count: the number of these tokens
//   weigh(scores, row, bound)          fills sampler()'s row with exp((score - largest) * scale); returns the sum
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "search/sampler.h"

namespace blip2rt {

enum class EarlyStopping : int32_t { kFalse, kTrue, kNever };

// Why a search failed.
enum class Fault : int32_t { kNone, kNotFinite, kNothingToDraw };

// The text of every token.
struct VocabularyView {
  const uint64_t* ends = nullptr;  // token i is bytes [ends[i], ends[i + 1])
  const char* bytes = nullptr;
};

struct SearchBlock {
  static constexpr float kStoppedBeamScore = -1e9f;  // added by Hugging Face to the score of a stopped beam

  struct Finished {
    float score;
    int32_t row;     // row of finished_tokens
    int32_t length;  // without the stop token
  };

  // The options, see options.h.
  double length_penalty, top_p, min_p;
  Random random;
  int32_t vocab_size, num_beams, max_new_tokens, min_new_tokens, no_repeat_ngram_size, do_sample, top_k;
  EarlyStopping early_stopping;
  float penalty, scale;        // scale: 1 / temperature
  int32_t num_candidates;      // candidates kept in a step of beam search
  int32_t min_tokens_to_keep;  // tokens of a row that sampling keeps at least
  int32_t eos_count, word_count, string_count;
  int32_t context_length, max_history;  // tokens before the answer that its search sees; maximum history

  // The state of the search.
  int32_t length;  // tokens chosen so far, equal for all running beams
  int32_t last, done;
  Fault fault;
  int32_t best_count, running_count, finished_count;

  // Offsets of arrays from the start of the block, in bytes.
  uint32_t eos_at, word_ends_at, words_at, string_ends_at, strings_at;
  uint32_t tokens_at, parents_at;            // (num_beams) int32: what to feed next; see tokens()
  uint32_t scores_at, next_scores_at;        // (num_beams) sums of log-probabilities
  uint32_t best_at, running_at;              // (num_candidates), (num_beams) candidates of a step, best first
  uint32_t history_at;                       // (num_beams, max_history) int32: context and chosen tokens
  uint32_t finished_at, finished_tokens_at;  // (num_beams), best first; (num_beams, max_new_tokens) int32
  uint32_t penalised_at;                     // scratch (max_history)

  template <class T>
  T* at(uint32_t offset) {
    return reinterpret_cast<T*>(reinterpret_cast<char*>(this) + offset);
  }
  template <class T>
  const T* at(uint32_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const char*>(this) + offset);
  }

  // The next input: beam b continues the previous beam parents()[b] with the token tokens()[b]. A beam that is
  // another's parent stays in its place: parents()[parents()[b]] == parents()[b].
  const int32_t* tokens() const { return at<int32_t>(tokens_at); }
  const int32_t* parents() const { return at<int32_t>(parents_at); }
  const float* scores() const { return at<float>(scores_at); }
  const Candidate* best() const { return at<Candidate>(best_at); }
  int32_t* history(int32_t row) { return at<int32_t>(history_at) + static_cast<size_t>(row) * max_history; }
  const int32_t* history(int32_t row) const { return at<int32_t>(history_at) + static_cast<size_t>(row) * max_history; }
  Finished* finished() { return at<Finished>(finished_at); }
  const Finished* finished() const { return at<Finished>(finished_at); }
  int32_t* finished_tokens(int32_t row) {
    return at<int32_t>(finished_tokens_at) + static_cast<size_t>(row) * max_new_tokens;
  }
  const int32_t* finished_tokens(int32_t row) const {
    return at<int32_t>(finished_tokens_at) + static_cast<size_t>(row) * max_new_tokens;
  }
  int32_t history_length() const { return context_length + length; }

  // Takes one step; allocates nothing. Overwrites the logits `all_scores` (rows, V). rows is 1 in the first step, where
  // all beams are equal, and num_beams later. `is_last`: this step chooses the last tokens.
  template <class Reader>
  void advance(Reader& reader, float* all_scores, int32_t rows, bool is_last, const VocabularyView& vocabulary) {
    last = is_last || length + 1 == max_new_tokens;
    best_count = 0;
    if (num_beams == 1) {
      step_single(reader, all_scores, vocabulary);
    } else {
      step_beams(reader, all_scores, rows, vocabulary);
    }
    if (fault != Fault::kNone) done = 1;
  }

  // Among equal scores, the candidate offered first wins.
  bool accepts(float score) const { return best_count < num_candidates || score > best()[best_count - 1].score; }
  void offer(const Candidate& candidate) {
    if (!accepts(candidate.score)) return;
    Candidate* items = at<Candidate>(best_at);
    int32_t place = best_count < num_candidates ? best_count++ : num_candidates - 1;
    for (; place > 0 && candidate.score > items[place - 1].score; --place) items[place] = items[place - 1];
    items[place] = candidate;
  }

  // Returns whether options change scores, beyond forbidding tokens.
  bool penalises() const { return penalty != 1.0f; }

  // Returns whether options may change scores in the next step.
  bool edits_logits() const {
    return penalises() || no_repeat_ngram_size > 0 || word_count > 0 || (length < min_new_tokens && eos_count > 0);
  }

  bool is_eos(int32_t token) const {
    for (int32_t i = 0; i < eos_count; ++i) {
      if (at<int32_t>(eos_at)[i] == token) return true;
    }
    return false;
  }

  float normalised(float sum, int32_t tokens_counted) const {
    return sum / static_cast<float>(std::pow(static_cast<double>(tokens_counted), length_penalty));
  }

 private:
  template <class Reader>
  void step_single(Reader& reader, float* scores, const VocabularyView& vocabulary) {
    process_logits(scores, 0);
    reader.measure(scores);
    int32_t token = reader.argmax(scores);
    if (do_sample) add_sampled_row(reader, scores, 0, 0);
    Candidate drawn;
    if (do_sample) {
      if (reader.sampler().draw(1, random, drawn)) {
        token = drawn.token;
      } else {
        fault = fault == Fault::kNone ? Fault::kNothingToDraw : fault;
      }
    }
    if (fault != Fault::kNone) return;
    float& sum = at<float>(scores_at)[0];
    const float score = sum + (scores[token] - reader.largest() - reader.log_sum());
    const Candidate choice{score, 0, token};
    done = stops(choice, vocabulary);
    if (done) finish(choice);
    sum = score;
    extend_beam(0, choice);
    history(0)[history_length()] = token;
    ++length;
  }

  template <class Reader>
  void step_beams(Reader& reader, float* all_scores, int32_t rows, const VocabularyView& vocabulary) {
    for (int32_t row = 0; row < rows; ++row) {
      float* scores = all_scores + static_cast<size_t>(row) * vocab_size;
      do_sample ? sample_beam(reader, scores, row) : offer_beam(reader, scores, row);
    }
    if (fault != Fault::kNone) return;
    if (do_sample) sample_candidates(reader, rows);

    running_count = 0;
    Candidate* running = at<Candidate>(running_at);
    for (int32_t rank = 0; rank < best_count; ++rank) {
      const Candidate& candidate = best()[rank];
      if (!stops(candidate, vocabulary)) {
        if (running_count < num_beams) running[running_count++] = candidate;
      } else if (rank < num_beams) {  // later candidates may continue, but are not returned
        finish(candidate);
      }
    }
    const bool all_stopped = running_count == 0;
    for (int32_t rank = 0; rank < best_count && running_count < num_beams; ++rank) {
      const Candidate& candidate = best()[rank];  // too many stopped: continue some with a hopeless score
      if (stops(candidate, vocabulary)) {
        running[running_count++] = {candidate.score + kStoppedBeamScore, candidate.row, candidate.token};
      }
    }
    assign_beams();
    ++length;
    done = all_stopped || !can_improve();
  }

  template <class Reader>
  void offer_beam(Reader& reader, float* scores, int32_t row) {
    reader.measure(scores);
    if (penalises()) reader.normalise(scores);  // Hugging Face's beams penalise log-probabilities, not logits
    process_logits(scores, row);
    if (penalises()) reader.remeasure(scores);
    reader.offer(scores, this->scores()[row], row, *this);
  }

  template <class Reader>
  void sample_beam(Reader& reader, float* scores, int32_t row) {
    reader.measure(scores);
    reader.normalise(scores);
    process_logits(scores, row);
    reader.measure(scores);  // after logits processing
    add_sampled_row(reader, scores, this->scores()[row], row);
  }

  // Adds a measured row to the sampler, with the tokens that the options allow.
  template <class Reader>
  void add_sampled_row(Reader& reader, const float* scores, float base, int32_t row) {
    const Sampler& sampler = reader.sampler();
    sampler.rows[row] = {scores, base, 0, 0};
    if (!std::isfinite(reader.largest())) return;  // every token is forbidden
    Bound bound;
    if (top_k > 0) bound = reader.top_k_bound(scores, std::max(top_k, min_tokens_to_keep));
    if (top_p < 1) {
      int32_t kept = 0;
      bound = reader.nucleus(scores, row, top_p, bound, kept);
      if (kept < min_tokens_to_keep) bound = reader.top_k_bound(scores, min_tokens_to_keep);
    }
    if (min_p > 0) {
      Bound other;
      other.score = static_cast<float>(reader.largest() + std::log(min_p) / scale);
      if (min_tokens_to_keep > 1)
        other.score = std::min(other.score, reader.top_k_bound(scores, min_tokens_to_keep).score);
      if (other.score > bound.score) bound = other;
    }
    const double log_weight = static_cast<double>(base) + static_cast<double>(reader.largest()) * scale;
    if (!std::isfinite(log_weight)) return;  // the beam has probability zero
    const double sum = reader.weigh(scores, row, bound);
    sampler.rows[row] = {scores, base, log_weight, sum};
  }

  // Draws candidates from the continuations of all beams together, without replacement. If too few have a probability,
  // adds some without.
  template <class Reader>
  void sample_candidates(Reader& reader, int32_t rows) {
    Candidate drawn;
    while (best_count < num_candidates && reader.sampler().draw(rows, random, drawn)) offer(drawn);
    for (int32_t token = 0; best_count < num_candidates; ++token) {
      bool same = false;
      for (int32_t i = 0; i < best_count; ++i) same = same || (best()[i].row == 0 && best()[i].token == token);
      if (!same) offer({kForbidden, 0, token});
    }
  }

  // Applies Hugging Face's logits processors to the scores of the token after beam `row`: repetition penalty, no
  // repeated n-grams, bad words, and no stop token before min_new_tokens.
  void process_logits(float* scores, int32_t row) {
    const int32_t* said = history(row);
    const int32_t count = history_length();
    if (penalises()) {
      float* penalised = at<float>(penalised_at);
      for (int32_t i = 0; i < count; ++i) {  // read all before writing any: a token counts once
        const float score = scores[said[i]];
        penalised[i] = score < 0 ? score * penalty : score / penalty;
      }
      for (int32_t i = 0; i < count; ++i) scores[said[i]] = penalised[i];
    }
    const int32_t begun = no_repeat_ngram_size - 1;  // tokens of the n-gram before the next one
    if (no_repeat_ngram_size > 0) {
      for (int32_t start = 0; start + begun < count; ++start) {
        if (equal(said + count - begun, said + start, begun)) scores[said[start + begun]] = kForbidden;
      }
    }
    const int32_t* words = at<int32_t>(words_at);
    for (int32_t i = 0, start = 0; i < word_count; start = at<int32_t>(word_ends_at)[i++]) {
      const int32_t before = at<int32_t>(word_ends_at)[i] - start - 1;  // tokens of the word except the last one
      if (before > count || !equal(said + count - before, words + start, before)) continue;
      const int32_t token = words[start + before];
      if (before > 0 || !is_eos(token)) scores[token] = kForbidden;  // a single stop token is no word
    }
    if (length < min_new_tokens) {
      for (int32_t i = 0; i < eos_count; ++i) scores[at<int32_t>(eos_at)[i]] = kForbidden;
    }
  }

  static bool equal(const int32_t* a, const int32_t* b, int32_t count) {
    for (int32_t i = 0; i < count; ++i) {
      if (a[i] != b[i]) return false;
    }
    return true;
  }

  void extend_beam(int32_t beam, const Candidate& candidate) {
    if (candidate.row != beam) {
      for (int32_t i = 0; i < history_length(); ++i) history(beam)[i] = history(candidate.row)[i];
    }
    at<int32_t>(parents_at)[beam] = candidate.row;
    at<int32_t>(tokens_at)[beam] = candidate.token;
    at<float>(next_scores_at)[beam] = candidate.score;
  }

  // Gives each beam's place to its best child, which then needs no copy, and the places of childless beams to the
  // others.
  void assign_beams() {
    Candidate* running = at<Candidate>(running_at);
    for (int32_t beam = 0; beam < num_beams; ++beam) at<int32_t>(parents_at)[beam] = -1;
    for (int32_t i = 0; i < running_count; ++i) {
      if (parents()[running[i].row] >= 0) continue;
      extend_beam(running[i].row, running[i]);
      running[i].token = -1;
    }
    int32_t free = 0;
    for (int32_t i = 0; i < running_count; ++i) {
      if (running[i].token < 0) continue;
      while (parents()[free] >= 0) ++free;
      extend_beam(free, running[i]);
    }
    for (int32_t beam = 0; beam < num_beams; ++beam) {
      at<float>(scores_at)[beam] = at<float>(next_scores_at)[beam];
      history(beam)[history_length()] = tokens()[beam];
    }
  }

  void finish(const Candidate& candidate) {
    const float score = normalised(candidate.score, length + 1);
    int32_t place = 0;
    while (place < finished_count && !(finished()[place].score < score)) ++place;
    const bool full = finished_count == num_beams;
    if (place == finished_count && full) return;

    const int32_t row = full ? finished()[finished_count - 1].row : finished_count;
    const int32_t kept = length + (is_eos(candidate.token) ? 0 : 1);
    for (int32_t i = 0; i < length; ++i) finished_tokens(row)[i] = history(candidate.row)[context_length + i];
    if (kept > length) finished_tokens(row)[length] = candidate.token;
    for (int32_t i = full ? finished_count - 1 : finished_count; i > place; --i) finished()[i] = finished()[i - 1];
    finished()[place] = {score, row, kept};
    finished_count += full ? 0 : 1;
  }

  bool can_improve() const {
    float highest = scores()[0];
    for (int32_t beam = 1; beam < num_beams; ++beam) highest = std::max(highest, scores()[beam]);
    // Only "never" considers that a running beam's score may still rise with its length.
    const bool may_rise = early_stopping == EarlyStopping::kNever && length_penalty > 0;
    const float hope = normalised(highest, may_rise ? max_new_tokens : length);
    if (finished_count < num_beams) return hope > kStoppedBeamScore;
    return early_stopping != EarlyStopping::kTrue && hope > finished()[finished_count - 1].score;
  }

  bool stops(const Candidate& candidate, const VocabularyView& vocabulary) const {
    return last || is_eos(candidate.token) || completes_stop_string(candidate, vocabulary);
  }

  // Returns whether a stop string ends within the candidate's token.
  bool completes_stop_string(const Candidate& candidate, const VocabularyView& vocabulary) const {
    const int32_t* ends = at<int32_t>(string_ends_at);
    for (int32_t i = 0, start = 0; i < string_count; start = ends[i++]) {
      const char* text = at<char>(strings_at) + start;
      const uint64_t first = vocabulary.ends[candidate.token], end = vocabulary.ends[candidate.token + 1];
      for (uint64_t stop = first; stop < end; ++stop) {  // the string's last byte
        if (ends_stop_string(text, ends[i] - start, candidate, stop, vocabulary)) return true;
      }
    }
    return false;
  }

  // Returns whether `text` ends at byte `stop` of the candidate's token. Compares backwards, token by token.
  bool ends_stop_string(const char* text, int32_t size, const Candidate& candidate, uint64_t stop,
                        const VocabularyView& vocabulary) const {
    int32_t token = candidate.token, before = history_length();
    uint64_t byte = stop + 1;
    for (int32_t left = size; left > 0; --left) {
      while (byte == vocabulary.ends[token]) {
        if (before == 0) return false;
        token = history(candidate.row)[--before];
        byte = vocabulary.ends[token + 1];
      }
      if (vocabulary.bytes[--byte] != text[left - 1]) return false;
    }
    return true;
  }
};

}  // namespace blip2rt
