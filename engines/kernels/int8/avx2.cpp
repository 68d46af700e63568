// The int8 kernel in AVX2.
#if defined(__x86_64__)
#include "kernels/target.h"

BLIP2RT_TARGET("avx2,fma")

#include "kernels/int8/avx2.h"

namespace blip2rt {

extern const Int8Kernel kInt8Avx2 = kernel<Avx2>("avx2");

}  // namespace blip2rt
BLIP2RT_TARGET_END
#endif
