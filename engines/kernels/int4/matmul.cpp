// Chooses the kernel for this processor. Knows instruction sets by name.
#include "kernels/int4/matmul.h"

#include <algorithm>

#include "kernels/dispatch.h"

namespace blip2rt {

size_t Int4Kernel::scratch_size(const Int4Matrix& matrix) const {
  // With many rows: the scales, offsets and codes of the tiles that are multiplied together. With few rows: numbers for
  // each block, of the rows and of the outputs that are multiplied together.
  const size_t of_tiles = across * tile * matrix.blocks() * (2 * sizeof(float) + matrix.block);
  return std::max(of_tiles, Int4Input::kFewNumbers * (matrix.blocks() + tile) * sizeof(float));
}

#if defined(__x86_64__)
extern const Int4Kernel kInt4Amx, kInt4Avx512, kInt4AvxVnni, kInt4Avx2;
#elif defined(__aarch64__) && defined(__linux__)
extern const Int4Kernel kInt4Neon;
#endif

namespace {

const KernelChoice<Int4Kernel>& kernels() {
  static const KernelChoice<Int4Kernel> found = [] {
    KernelChoice<Int4Kernel> choice;
#if defined(__x86_64__)
    if (may_use_amx()) choice.add(kInt4Amx);
    if (has_avx512_vnni()) choice.add(kInt4Avx512);
    if (has_avx_vnni()) choice.add(kInt4AvxVnni);
    if (has_avx2()) choice.add(kInt4Avx2);
#elif defined(__aarch64__) && defined(__linux__)
    if (has_dot_product()) choice.add(kInt4Neon);
#endif
    return choice;
  }();
  return found;
}

}  // namespace

const Int4Kernel* int4_kernel() { return kernels().best(); }

const Int4Kernel* int4_kernel(const char* name) { return kernels().named(name); }

}  // namespace blip2rt
