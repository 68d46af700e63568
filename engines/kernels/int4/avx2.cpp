// The int4 kernel in AVX2.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,f16c,fma")

#include "kernels/int4/avx2.h"

namespace blip2rt {

extern const Int4Kernel kInt4Avx2 = {"avx2", Avx2::kLanes, Avx2::kTilesAtOnce, quantize<Avx2>, multiply<Avx2>};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
