// Chooses the int4 kernel for this processor.
#include "kernels/int4/matmul.h"

#include <algorithm>

#include "kernels/dispatch.h"

namespace blip2rt {

size_t Int4Kernel::scratch_size(const Int4Matrix& matrix) const {
  // Tiles need the scales, offsets and codes of the tiles multiplied at once. Few rows need two numbers for each block
  // of each row, and a copy of an output.
  const size_t of_tiles = product_of(tiles_at_once * tile, matrix.blocks(), 2 * sizeof(float) + matrix.block);
  const size_t of_few = product_of(matrix.blocks() + tile, 2 * Int4Input::kFewRows * sizeof(float) + matrix.block);
  return std::max(of_tiles, of_few);
}

#if defined(__x86_64__)
extern const Int4Kernel kInt4Amx, kInt4Avx512, kInt4AvxVnni, kInt4Avx2, kInt4Sse41;
#elif defined(__aarch64__)
extern const Int4Kernel kInt4DotProduct, kInt4Neon;
#elif defined(__wasm_simd128__)
extern const Int4Kernel kInt4Simd128;
#endif

const Int4Kernel* int4_kernel(const char* name) {
  static const KernelList<Int4Kernel> kernels = {
#if defined(__x86_64__)
      {may_use(Level::kAmx), kInt4Amx},         {may_use(Level::kAvx512), kInt4Avx512},
      {may_use(Level::kAvxVnni), kInt4AvxVnni}, {may_use(Level::kAvx2), kInt4Avx2},
      {may_use(Level::kSse41), kInt4Sse41},
#elif defined(__aarch64__)
      {may_use(Level::kDotProduct), kInt4DotProduct},
      {may_use(Level::kNeon), kInt4Neon},
#elif defined(__wasm_simd128__)
      {may_use(Level::kSimd128), kInt4Simd128},
#endif
  };
  return kernels.find(name);
}

}  // namespace blip2rt
