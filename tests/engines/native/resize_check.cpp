// The resizing kernels that this processor has, on random pictures of awkward sizes, beside plain arithmetic.
//
//   resize_check SEED     prints the kernels that it ran; fails with the case that differs
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/resize/resize.h"

namespace {

using namespace blip2rt;

std::vector<uint8_t> resized(const std::vector<uint8_t>& rgbx, const char* filter, Size from, Size to,
                             const ResizeKernel& kernel, std::mt19937& random) {
  Resize picture(filter, from, to, kernel);
  const uint8_t* rows = rgbx.data();
  while (picture.rows_left() != 0) {
    const size_t strip = std::uniform_int_distribution<size_t>(0, std::min<size_t>(picture.rows_left(), 9))(random);
    picture.add(rows, strip);
    rows += strip * picture.row_bytes();
  }
  std::vector<uint8_t> rgb(to.width * to.height * 3);
  picture.write(rgb.data());
  return rgb;
}

bool check(const ResizeKernel& kernel, std::mt19937& random) {
  const auto below = [&random](size_t end) { return std::uniform_int_distribution<size_t>(1, end)(random); };
  for (int i = 0; i < 60; ++i) {
    for (const char* filter : {"box", "bilinear", "hamming", "bicubic", "lanczos"}) {
      const Size from{below(i % 3 == 0 ? 400 : 12), below(40)}, to{below(i % 2 == 0 ? 12 : 90), below(40)};
      std::vector<uint8_t> rgbx(from.width * from.height * 4);
      for (auto& value : rgbx) {
        value = static_cast<uint8_t>(i % 4 == 0 ? 255 * (random() % 2) : random());  // edges, which overshoot, too
      }
      const auto expected = resized(rgbx, filter, from, to, *resize_kernel("plain"), random);
      if (resized(rgbx, filter, from, to, kernel, random) != expected) {
        std::printf("%s: %s, %zu x %zu to %zu x %zu\n", kernel.name, filter, from.width, from.height, to.width,
                    to.height);
        return false;
      }
    }
  }
  return true;
}

}  // namespace

int main(int, char** arguments) {
  std::mt19937 random(static_cast<unsigned>(std::strtoul(arguments[1], nullptr, 10)));
  for (const char* name : {"avx2", "neon"}) {
    const ResizeKernel* kernel = resize_kernel(name);
    if (kernel == nullptr) continue;
    if (!check(*kernel, random)) return 1;
    std::printf("%s ", name);
  }
  return 0;
}
