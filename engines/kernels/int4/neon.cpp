// The int4 kernel in NEON, for processors without the dot product.
#if defined(__aarch64__)
#include "kernels/int4/neon.h"

namespace blip2rt {

extern const Int4Kernel kInt4Neon = {"neon", Neon::kLanes, Neon::kTilesAtOnce, quantize<Neon>, multiply<Neon>};

}  // namespace blip2rt
#endif
