// The resizing passes in portable C++.
#include "kernels/resize/passes.h"

namespace blip2rt {
namespace {

struct Plain {
  struct Ints {
    int32_t lanes[4];
  };

  static Ints zero() { return {}; }
  static Ints load(const int32_t* from) { return {{from[0], from[1], from[2], from[3]}}; }
  static Ints broadcast(int32_t value) { return {{value, value, value, value}}; }

  static Ints add_product(Ints sum, const uint8_t* bytes, Ints weight) {
    for (int i = 0; i < 4; ++i) sum.lanes[i] += bytes[i] * weight.lanes[i];
    return sum;
  }

  static void store_pixel(uint8_t* to, Ints sums) {
    for (int i = 0; i < 4; ++i) {
      const int32_t value = (sums.lanes[i] + (1 << (ResizeKernel::kFractionBits - 1))) >> ResizeKernel::kFractionBits;
      to[i] = static_cast<uint8_t>(value < 0 ? 0 : value > 255 ? 255 : value);
    }
  }

  static void store(uint8_t* to, Ints sums) { store_pixel(to, sums); }
};

}  // namespace

extern const ResizeKernel kResizePlain = kernel<PixelByPixel<Plain>>("plain");

}  // namespace blip2rt
