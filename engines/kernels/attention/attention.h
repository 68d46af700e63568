// Attention of new positions to a key/value cache with shared prompts: all beams of a prompt read its single copy. Rows
// of one run may have caches of different lengths.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {

// The distances between rows, positions and heads, in floats.
struct Strides {
  size_t row, position, head;

  size_t at(size_t r, size_t p, size_t h) const { return r * row + p * position + h * head; }
};

// What a row of the batch attends to: `prompt_length` positions from `prompt_start` on, then `past_length` positions
// from `past_start` on, then its new positions, which are appended to those. Both starts are places of the first head:
// in a cache (rows, kv_heads, capacity, width), row * kv_heads * capacity + position. So a row of the batch may use any
// row of the cache, and several may share one.
struct CacheRow {
  int32_t prompt_start, prompt_length, past_start, past_length;
};

struct Attention {
  static constexpr size_t kWidthMultiple = 8;  // head widths are a multiple of this

  size_t rows, length;            // rows of the batch; new positions of each row
  size_t heads, kv_heads, width;  // query heads, a multiple of kv_heads; floats per head
  const float* query;
  Strides query_strides;
  // The keys and values of the new positions. nullptr for cross-attention: rows then attend to prompts alone.
  const float *key, *value;
  Strides key_strides;
  float *keys, *values;        // the cache (any number of rows, kv_heads, capacity, width)
  size_t capacity;             // distance between the heads of a position, in places
  const CacheRow* cache_rows;  // (rows)
  float* out;
  Strides out_strides;
  float scale;
  float softcap = 0;                           // scores become softcap * tanh(score / softcap); 0: no cap
  size_t window = 0;                           // attend to this many of the last positions; 0: all
  size_t rotary_dims = 0;                      // floats of a head that rotate with the position, in pairs (i, i + half)
  const float *cos = nullptr, *sin = nullptr;  // (positions, rotary_dims / 2)
  const float* bias = nullptr;                 // added to the score of each position
  Strides bias_strides = {0, 0, 0};

  size_t group_size() const { return heads / kv_heads; }
  // New position `index` of a row attends to positions [first_visible, visible).
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

// A kv head has rows * length * group_size() queries, which are computed in blocks of this size, so that beams read
// their prompt once.
constexpr size_t kQueryBlock = 4;

// An implementation for one instruction set.
struct AttentionKernel {
  const char* name;
  // Appends the new keys and values of one row and kv head to the cache.
  void (*append)(const Attention& attention, size_t row, size_t kv_head);
  // Computes one block of queries of a kv head, after everything they attend to was appended. scratch:
  // scratch_floats().
  void (*attend)(const Attention& attention, size_t kv_head, size_t block, float* scratch);

  static size_t scratch_floats(const Attention& attention);
};

// Returns the best kernel for this processor, or the kernel "avx2" or "plain" for tests. Returns nullptr where the
// processor lacks its instructions.
const AttentionKernel* attention_kernel(const char* name = nullptr);

}  // namespace blip2rt
