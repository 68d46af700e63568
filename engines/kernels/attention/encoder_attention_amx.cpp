// Encoder attention in AMX: 32 queries at a time, in products of bfloat16.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")

#include "kernels/amx.h"
#include "kernels/attention/encoder_attention.h"

namespace blip2rt {
namespace {

constexpr size_t kLanes = 16;                              // floats per vector; rows and columns of a tile of sums
constexpr size_t kRows = 2 * amx::kTileRows, kDepth = 32;  // queries at a time; halves per tile row

// bfloat16: the upper half of a float32.
using Half = uint16_t;
static_assert(kDepth * sizeof(Half) == amx::kTileBytes, "a tile's row");

size_t padded(size_t count) { return (count + kDepth - 1) / kDepth * kDepth; }

// The layout of the scratch memory. Keys and values are stored in tiles of 32 rows and 16 columns, two rows
// interleaved, as AMX reads the right side of a product. `high` holds a float's upper 16 bits, `low` the rest.
struct ScratchLayout {
  size_t keys, width;  // padded with zeros
  Half *key_high, *key_low, *values, *query_high, *query_low, *weights;
  float *scores, *sums;
  size_t bytes;

  ScratchLayout(const EncoderAttention& a, uint8_t* scratch)
      : keys(padded(a.positions)), width(padded(a.width)), bytes(0) {
    const auto take = [&](size_t size) {
      uint8_t* place = scratch == nullptr ? nullptr : scratch + bytes;
      bytes += size;
      return place;
    };
    const auto halves = [&](size_t count) { return reinterpret_cast<Half*>(take(count * sizeof(Half))); };
    key_high = halves(keys * width);
    key_low = halves(keys * width);
    values = halves(keys * width);
    query_high = halves(kRows * width);
    query_low = halves(kRows * width);
    weights = halves(kRows * keys);
    scores = reinterpret_cast<float*>(take(kRows * keys * sizeof(float)));
    sums = reinterpret_cast<float*>(take(kRows * width * sizeof(float)));
  }
};

__mmask16 first(size_t count) { return static_cast<__mmask16>(count < kLanes ? (1u << count) - 1 : 0xffff); }

// Loads 16 floats of a row from `at` on, zero-padded after its `count` floats.
__m512 load_part(const float* row, size_t at, size_t count) {
  return at < count ? _mm512_maskz_loadu_ps(first(count - at), row + at) : _mm512_setzero_ps();
}

// Rounds to bfloat16 precision, as a float.
__m512 rounded(__m512 x) {
  const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
  return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
}

struct Split {
  __m512i high, low;  // 32 halves

  Split(__m512 a, __m512 b) {
    high = halves(rounded(a), rounded(b));
    low = halves(_mm512_sub_ps(a, rounded(a)), _mm512_sub_ps(b, rounded(b)));
  }

  static __m512i halves(__m512 a, __m512 b) { return (__m512i)_mm512_cvtne2ps_pbh(b, a); }
};

// Transposes 16 x 16 values of 32 bits.
void transpose(__m512i* rows) {
  __m512i pairs[kLanes], fours[kLanes];
  for (size_t i = 0; i < kLanes; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (size_t i = 0; i < kLanes; i += 4) {
    for (size_t j = 0; j < 2; ++j) {
      fours[i + 2 * j] = _mm512_unpacklo_epi64(pairs[i + j], pairs[i + 2 + j]);
      fours[i + 2 * j + 1] = _mm512_unpackhi_epi64(pairs[i + j], pairs[i + 2 + j]);
    }
  }
  for (size_t i = 0; i < 4; ++i) {  // fours[4 * g + i] has columns i, i + 4, i + 8, i + 12 of rows 4 * g to 4 * g + 3
    const __m512i a = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0x88);
    const __m512i b = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0x88);
    const __m512i c = _mm512_shuffle_i32x4(fours[i], fours[4 + i], 0xdd);
    const __m512i d = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], 0xdd);
    rows[i] = _mm512_shuffle_i32x4(a, b, 0x88);
    rows[i + 8] = _mm512_shuffle_i32x4(a, b, 0xdd);
    rows[i + 4] = _mm512_shuffle_i32x4(c, d, 0x88);
    rows[i + 12] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
}

// Packs the transposed keys into tiles, those of 16 keys one after the other.
void pack_keys(const EncoderAttention& a, const float* key, size_t step, const ScratchLayout& p) {
  for (size_t begin = 0; begin < p.keys; begin += kLanes) {
    for (size_t k = 0; k < p.width; k += kDepth) {
      __m512i high[kLanes], low[kLanes];
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t width = begin + i < a.positions ? a.width : 0;
        const float* row = key + (begin + i) * step;
        const Split split(load_part(row, k, width), load_part(row, k + kLanes, width));
        high[i] = split.high;
        low[i] = split.low;
      }
      transpose(high);
      transpose(low);
      const size_t at = begin * p.width + k * kLanes;
      for (size_t i = 0; i < kLanes; ++i) {
        _mm512_store_si512(p.key_high + at + i * kDepth, high[i]);
        _mm512_store_si512(p.key_low + at + i * kDepth, low[i]);
      }
    }
  }
}

// Packs the values into tiles, those of 16 columns one after the other.
void pack_values(const EncoderAttention& a, const float* value, size_t step, const ScratchLayout& p) {
  alignas(64) uint16_t order[2 * kLanes];
  for (uint16_t i = 0; i < 2 * kLanes; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * kLanes);
  const __m512i in_pairs = _mm512_load_si512(order);
  for (size_t row = 0; row < p.keys; row += 2) {
    const float* from = value + row * step;
    const size_t upper = row < a.positions ? a.width : 0, lower = row + 1 < a.positions ? a.width : 0;
    for (size_t column = 0; column < p.width; column += kLanes) {
      const __m512i pair = Split::halves(load_part(from, column, upper), load_part(from + step, column, lower));
      Half* to = p.values + column * p.keys + row * kLanes;
      _mm512_store_si512(to, _mm512_permutexvar_epi16(in_pairs, pair));
    }
  }
}

// One product: the left side in rows of `depth` halves, the right side in tiles.
struct Product {
  const Half *left, *right;
};

// Tile numbers must be literals: tiles 0 and 1 sum the upper 16 rows, for 16 columns and the next 16; 2 and 3 the lower
// 16 rows; 4 and 5 hold rows of the left side, 6 and 7 the right side.
void configure_tiles() {
  amx::TileConfig config;
  config.set({0, 1, 2, 3, 4, 5, 6, 7}, amx::kTileRows, amx::kTileBytes);
  config.load();
}

// Writes the sum of some products: 16 or 32 rows and a multiple of 32 columns.
template <bool Lower, size_t Terms>
void multiply(const Product (&terms)[Terms], size_t depth, size_t columns, float* out) {
  const size_t from_row = depth * sizeof(Half), to_row = columns * sizeof(float);
  amx::compiler_barrier(terms);
  for (size_t column = 0; column < columns; column += 2 * kLanes) {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (Lower) _tile_zero(2);
    if constexpr (Lower) _tile_zero(3);
    for (const Product& term : terms) {
      for (size_t k = 0; k < depth; k += kDepth) {
        const Half* right = term.right + column * depth + k * kLanes;
        _tile_loadd(6, right, amx::kTileBytes);
        _tile_loadd(4, term.left + k, from_row);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + kLanes * depth, amx::kTileBytes);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (Lower) {
          _tile_loadd(5, term.left + amx::kTileRows * depth + k, from_row);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    float* lower = out + amx::kTileRows * columns;
    _tile_stored(0, out + column, to_row);
    _tile_stored(1, out + column + kLanes, to_row);
    if constexpr (Lower) _tile_stored(2, lower + column, to_row);
    if constexpr (Lower) _tile_stored(3, lower + column + kLanes, to_row);
  }
  amx::compiler_barrier(out);
}

// 2^x for x <= 0, with a relative error of 3e-6: a Taylor series around the nearest integer.
__m512 power_of_two(__m512 x) {
  const __m512 whole = _mm512_roundscale_ps(x, 0), t = _mm512_sub_ps(x, whole);
  __m512 result = _mm512_set1_ps(1.3333558e-3f);
  for (float factor : {9.6181291e-3f, 5.5504109e-2f, 2.4022651e-1f, 6.9314718e-1f, 1.0f}) {
    result = _mm512_fmadd_ps(result, t, _mm512_set1_ps(factor));
  }
  return _mm512_scalef_ps(result, whole);
}

// Writes the exponentials of one query's scores relative to the largest, and returns their sum.
float exponentials(const float* scores, size_t count, size_t all, float scale, Half* weights) {
  constexpr float kLog2E = 1.44269504f;
  __m512 most = _mm512_set1_ps(-__builtin_inff()), sum = _mm512_setzero_ps();
  for (size_t i = 0; i < count; i += kLanes) {
    most = _mm512_mask_max_ps(most, first(count - i), most, _mm512_load_ps(scores + i));
  }
  const __m512 factor = _mm512_set1_ps(scale * kLog2E), largest = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  const auto weight = [&](size_t i) {
    if (i >= count) return _mm512_setzero_ps();
    const __m512 below = _mm512_sub_ps(_mm512_load_ps(scores + i), largest);
    const __m512 found = _mm512_maskz_mov_ps(first(count - i), power_of_two(_mm512_mul_ps(below, factor)));
    sum = _mm512_add_ps(sum, found);
    return found;
  };
  for (size_t i = 0; i < all; i += kDepth) {
    const __m512 a = weight(i), b = weight(i + kLanes);
    _mm512_store_si512(weights + i, Split::halves(a, b));
  }
  return _mm512_reduce_add_ps(sum);
}

size_t scratch_size(const EncoderAttention& a) { return ScratchLayout(a, nullptr).bytes; }

void attend(const EncoderAttention& a, size_t head, uint8_t* scratch) {
  const ScratchLayout p(a, scratch);
  const size_t of_position = a.heads * a.width, step = 3 * of_position;
  const float *query = a.qkv + head * a.width, *key = query + of_position, *value = key + of_position;
  pack_keys(a, key, step, p);
  pack_values(a, value, step, p);
  configure_tiles();
  for (size_t begin = 0; begin < a.positions; begin += kRows) {
    const size_t rows = a.positions - begin < kRows ? a.positions - begin : kRows;
    for (size_t r = 0; r < kRows; ++r) {
      const float* row = query + (begin + r) * step;
      for (size_t k = 0; k < p.width; k += kDepth) {
        const size_t width = r < rows ? a.width : 0;
        const Split split(load_part(row, k, width), load_part(row, k + kLanes, width));
        _mm512_store_si512(p.query_high + r * p.width + k, split.high);
        _mm512_store_si512(p.query_low + r * p.width + k, split.low);
      }
    }
    // The product of both low parts is omitted: it is below float precision.
    const Product scores[] = {{p.query_high, p.key_high}, {p.query_low, p.key_high}, {p.query_high, p.key_low}};
    const bool lower = rows > amx::kTileRows;
    (lower ? multiply<true, 3> : multiply<false, 3>)(scores, p.width, p.keys, p.scores);
    float totals[kRows];
    for (size_t r = 0; r < rows; ++r) {
      totals[r] = exponentials(p.scores + r * p.keys, a.positions, p.keys, a.scale, p.weights + r * p.keys);
    }
    const Product sums[] = {{p.weights, p.values}};
    (lower ? multiply<true, 1> : multiply<false, 1>)(sums, p.keys, p.width, p.sums);
    for (size_t r = 0; r < rows; ++r) {
      const __m512 inverse = _mm512_set1_ps(1.0f / totals[r]);
      float* to = a.out + (begin + r) * of_position + head * a.width;
      for (size_t i = 0; i < a.width; i += kLanes) {
        const __m512 sum = _mm512_load_ps(p.sums + r * p.width + i);
        _mm512_mask_storeu_ps(to + i, first(a.width - i), _mm512_mul_ps(sum, inverse));
      }
    }
  }
  _tile_release();
}

}  // namespace

extern const EncoderAttentionKernel kEncoderAttentionAmx = {"amx", scratch_size, attend};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
