// The int8 kernel in NEON, for processors without the dot product.
#if defined(__aarch64__)
#include "kernels/int8/neon.h"

namespace blip2rt {

extern const Int8Kernel kInt8Neon = kernel<Neon>("neon");

}  // namespace blip2rt
#endif
