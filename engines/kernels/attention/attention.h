// Attention of new positions to a key/value cache in which rows share what they have in common: a prompt is read into
// one row, and the rows of all its beams go on from there without a copy of it. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// Where a row's, a position's and a head's floats begin: at the sum of so many for each.
struct Steps {
  size_t row, position, head;

  size_t at(size_t r, size_t p, size_t h) const { return r * row + p * position + h * head; }
};

// What a row of the batch attends to, in this order: the first `prompt_length` positions of the cache's row
// `prompt_row`, and `before` positions of its own row from `start` on, behind which the new ones are written.
struct CacheRow {
  int32_t prompt_row, prompt_length, start, before;
};

struct Attention {
  static constexpr size_t kUnit = 8;  // heads are so many floats wide, or a multiple

  size_t rows, length;            // of the batch; new positions of each row
  size_t heads, kv_heads, width;  // heads of queries, a multiple of kv_heads; floats of a head
  const float* query;
  Steps query_steps;
  // Of the new positions, one of a head after the other; nullptr where there are none, as what an encoder said is all
  // that is seen: prompts, and nothing of the rows' own.
  const float *key, *value;
  Steps key_steps;
  float *keys, *values;  // the cache, (any rows, kv_heads, capacity, width)
  size_t capacity;
  const CacheRow* where;  // (rows)
  float* out;
  Steps out_steps;
  float scale;
  float softcap = 0;                           // scores are softcap * tanh(score / softcap); 0: as they are
  size_t window = 0;                           // the last so many positions are attended to; 0: all
  size_t rotated = 0;                          // floats of a head that rotate with the position, half and half; 0: none
  const float *cos = nullptr, *sin = nullptr;  // (positions, rotated / 2)
  const float* bias = nullptr;                 // added to scores, a number for each position that is seen
  Steps bias_steps = {0, 0, 0};

  size_t group() const { return heads / kv_heads; }
  // Positions that a row's new one with this index sees, and the first of them.
  size_t seen(size_t row, size_t index) const {
    const size_t prompt = static_cast<size_t>(where[row].prompt_length);
    return key == nullptr ? prompt : prompt + static_cast<size_t>(where[row].before) + index + 1;
  }
  size_t most_seen() const {
    size_t most = 0;
    for (size_t row = 0; row < rows && length > 0; ++row) {
      const size_t all = seen(row, length - 1);
      if (all > most) most = all;
    }
    return most;
  }
  size_t first_seen(size_t row, size_t index) const {
    const size_t all = seen(row, index);
    return window == 0 || all <= window ? 0 : all - window;
  }
};

// The queries of a kv head, rows * length * group() of them, are taken in blocks of so many: those of beams, which look
// at one prompt, read it once.
constexpr size_t kQueryBlock = 4;

// One way to do it for the processor that runs.
struct AttentionKernel {
  const char* name;
  // Writes the new keys and values of one row and kv head into the cache.
  void (*append)(const Attention& attention, size_t row, size_t kv_head);
  // One block of the queries of a kv head, when all that they see is in the cache. scratch: scratch_floats().
  void (*attend)(const Attention& attention, size_t kv_head, size_t block, float* scratch);

  static size_t scratch_floats(const Attention& attention);
};

// The best for this processor.
const AttentionKernel& attention_kernel();

// By name ("avx2", "plain"), for tests; nullptr where the processor lacks it.
const AttentionKernel* attention_kernel(const char* name);

}  // namespace blip2rt
