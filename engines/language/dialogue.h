// A conversation about one image without the model: what each question reads, and how many positions are taken.
#pragma once

#include <string>

#include "language/language.h"

namespace blip2rt {

class Dialogue {
 public:
  struct Turn {
    Task task;
    Ids ids;  // of the question, and of what was said before and never read
  };

  // `options`: the defaults of every question. `rewords`: reads plain questions. `language` must outlive it. Throws
  // Error.
  Dialogue(const Language& language, CallerOptions options, bool rewords);

  // The largest number of beams that a question may have.
  int max_beams() const { return max_beams_; }

  // Checks a question, and finds what the model reads for it. Throws Error.
  Turn begin(const std::string& question, const CallerOptions& options) const;

  // One of these follows: the language model reads a turn, or the answer is known without it.
  void read(const Turn& turn);
  void answered(const Turn& turn, const Ids& answer);

  // Records the number of tokens of the answer to the last turn. Call it before the next turn.
  void add_answer(size_t tokens);

 private:
  const Language& language_;
  const CallerOptions options_;
  const bool rewords_;
  const int max_beams_;
  Ids unread_;           // of short answers and their questions, for the next question
  int64_t used_ = 0;     // positions, besides the image's
  int64_t reading_ = 0;  // positions of the turn that was read last
};

}  // namespace blip2rt
