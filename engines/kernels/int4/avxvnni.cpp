// The int4 kernel in AVX-VNNI, which replaces three AVX2 instructions by one.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,f16c,fma,avxvnni")

#include "kernels/int4/avx2.h"

namespace blip2rt {
namespace {

struct AvxVnni : Avx2 {
  static constexpr size_t kRows16Bit = 4;
  static constexpr bool kPairTilesForFewRows = false;

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

extern const Int4Kernel kInt4AvxVnni = {"avxvnni", AvxVnni::kLanes, AvxVnni::kTilesAtOnce, quantize<AvxVnni>,
                                        multiply<AvxVnni>};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
