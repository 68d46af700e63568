// The resizing passes in the compiler's own vectors: SSE2 on x86-64, SIMD128 in WebAssembly.
#include <cstring>

#include "kernels/resize/passes.h"

namespace blip2rt {
namespace {

struct Plain {
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef uint8_t Pixel __attribute__((vector_size(4)));

  static Ints zero() { return Ints{}; }
  static Ints load(const int32_t* from) {
    Ints to;
    std::memcpy(&to, from, sizeof to);
    return to;
  }
  static Ints broadcast(int32_t value) { return value + Ints{}; }

  static Ints add_product(Ints sum, const uint8_t* bytes, Ints weight) {
    Pixel pixel;
    std::memcpy(&pixel, bytes, sizeof pixel);
    return sum + __builtin_convertvector(pixel, Ints) * weight;
  }

  static void store_pixel(uint8_t* to, Ints sums) {
    const Ints none = {}, most = 255 + none;
    Ints value = (sums + (1 << (ResizeKernel::kFractionBits - 1))) >> ResizeKernel::kFractionBits;
    value = value < none ? none : value;
    const Pixel pixel = __builtin_convertvector(value > most ? most : value, Pixel);
    std::memcpy(to, &pixel, sizeof pixel);
  }

  static void store(uint8_t* to, Ints sums) { store_pixel(to, sums); }
};

}  // namespace

extern const ResizeKernel kResizePlain = kernel<PixelByPixel<Plain>>("plain");

}  // namespace blip2rt
