// The products of matmul.h in AVX2 with AVX-VNNI, which has one instruction for three of AVX2. Knows instructions only.
#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,f16c,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC target("avx2,f16c,fma,avxvnni")
#endif
#include "kernels/int4/avx2.h"

namespace blip2rt {
namespace {

struct AvxVnni : Avx2 {
  static constexpr size_t kSplitRows = 4;
  static constexpr bool kFewAcross = false;

  static Ints begin_piece(Ints sum) { return sum; }
  static Ints end_piece(Ints, Ints part) { return part; }
  template <size_t Index>
  static Ints dot_four(Ints part, Ints codes, const int8_t* values) {
    return _mm256_dpbusd_avx_epi32(part, codes, _mm256_set1_epi32(x86::four<Index>(values)));
  }
  static Ints dot_all(Ints sum, Ints low, Ints high, const int8_t* values) {
    sum = _mm256_dpbusd_avx_epi32(sum, low, load(values));
    return _mm256_dpbusd_avx_epi32(sum, high, load(values + sizeof(Ints)));
  }
};

}  // namespace

extern const Int4Kernel kInt4AvxVnni = {"avxvnni", AvxVnni::kLanes, AvxVnni::kAcross, quantize<AvxVnni>,
                                        multiply<AvxVnni>};

}  // namespace blip2rt
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
