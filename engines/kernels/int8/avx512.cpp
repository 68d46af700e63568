// The int8 kernel in AVX-512 with VNNI.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")

#include "kernels/int8/avx512.h"

namespace blip2rt {

extern const Int8Kernel kInt8Avx512 = kernel<Avx512>("avx512");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
