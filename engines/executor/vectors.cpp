// Chooses the loops for this processor.
#include "executor/vectors.h"

#include "kernels/dispatch.h"

namespace blip2rt {

extern const VectorLoops kVectorLoopsPlain;
#if defined(__x86_64__)
extern const VectorLoops kVectorLoopsAvx2, kVectorLoopsAvx512;
#endif

const VectorLoops& vector_loops() {
  static const KernelList<VectorLoops> loops = {
#if defined(__x86_64__)
      {may_use(Level::kAvx512), kVectorLoopsAvx512},
      {may_use(Level::kAvx2), kVectorLoopsAvx2},
#endif
      {true, kVectorLoopsPlain},
  };
  return *loops.find(nullptr);
}

}  // namespace blip2rt
