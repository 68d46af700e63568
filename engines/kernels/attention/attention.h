// Attention of new positions to a key/value cache whose rows share prompts: a prompt lies in one place, and all its
// beams read it there, without a copy. Rows of one run may have read differently much. Knows numbers only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// How many floats apart rows, positions and heads lie.
struct Strides {
  size_t row, position, head;

  size_t at(size_t r, size_t p, size_t h) const { return r * row + p * position + h * head; }
};

// What a row of the batch attends to, in this order: `prompt_length` positions of the cache from `prompt_start` on,
// then `past_length` positions from `past_start` on, then its new positions, which are written behind them. Both starts
// are places of the first head. A cache (rows, kv_heads, capacity, width) has the place row * kv_heads * capacity +
// position for it, so that a row of the batch may lie in any row of the cache, or many of them in one.
struct CacheRow {
  int32_t prompt_start, prompt_length, past_start, past_length;
};

struct Attention {
  static constexpr size_t kWidthMultiple = 8;  // the width of a head is a multiple of this

  size_t rows, length;            // rows of the batch; new positions of each row
  size_t heads, kv_heads, width;  // heads of queries, a multiple of kv_heads; floats of a head
  const float* query;
  Strides query_strides;
  // Keys and values of the new positions. nullptr for attention to an encoder: then rows attend to prompts alone.
  const float *key, *value;
  Strides key_strides;
  float *keys, *values;        // the cache (any number of rows, kv_heads, capacity, width)
  size_t capacity;             // how many places the heads of a position lie apart
  const CacheRow* cache_rows;  // (rows)
  float* out;
  Strides out_strides;
  float scale;
  float softcap = 0;                           // scores become softcap * tanh(score / softcap); 0: they stay
  size_t window = 0;                           // how many of the last positions are attended to; 0: all
  size_t rotary_dims = 0;                      // floats of a head that rotate with the position, in pairs (i, i + half)
  const float *cos = nullptr, *sin = nullptr;  // (positions, rotary_dims / 2)
  const float* bias = nullptr;                 // a number for each position, added to its score
  Strides bias_strides = {0, 0, 0};

  size_t group_size() const { return heads / kv_heads; }
  // The row's new position `index` sees the positions [first_visible, visible).
  size_t visible(size_t row, size_t index) const {
    const size_t prompt = static_cast<size_t>(cache_rows[row].prompt_length);
    return key == nullptr ? prompt : prompt + static_cast<size_t>(cache_rows[row].past_length) + index + 1;
  }
  size_t max_visible() const {
    size_t most = 0;
    for (size_t row = 0; row < rows && length > 0; ++row) {
      const size_t all = visible(row, length - 1);
      if (all > most) most = all;
    }
    return most;
  }
  size_t first_visible(size_t row, size_t index) const {
    const size_t all = visible(row, index);
    return window == 0 || all <= window ? 0 : all - window;
  }
};

// A kv head has rows * length * group_size() queries. So many are computed together: beams then read their prompt once.
constexpr size_t kQueryBlock = 4;

// An implementation for one instruction set.
struct AttentionKernel {
  const char* name;
  // Writes the new keys and values of one row and kv head into the cache.
  void (*append)(const Attention& attention, size_t row, size_t kv_head);
  // Computes one block of queries of a kv head, after all that they see was appended. scratch: scratch_floats().
  void (*attend)(const Attention& attention, size_t kv_head, size_t block, float* scratch);

  static size_t scratch_floats(const Attention& attention);
};

// Returns the best kernel for this processor, or the kernel "avx2" or "plain" for tests. Returns nullptr where the
// processor lacks its instructions.
const AttentionKernel* attention_kernel(const char* name = nullptr);

}  // namespace blip2rt
