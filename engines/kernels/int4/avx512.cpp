// The int4 kernel in AVX-512 with VNNI.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,f16c,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

#include "kernels/int4/avx512.h"

namespace blip2rt {

extern const Int4Kernel kInt4Avx512 = {"avx512", Avx512::kLanes, Avx512::kTilesAtOnce, quantize<Avx512>,
                                       multiply<Avx512>};

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
