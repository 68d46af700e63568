// Compares every resizing kernel that this processor supports with the portable one, on random pictures of awkward
// sizes: resize_check SEED
#include "check.h"
#include "kernels/resize/resize.h"

namespace {

using namespace blip2rt;

std::vector<uint8_t> resize(const std::vector<uint8_t>& rgbx, const char* filter, Size from, Size to,
                            const ResizeKernel& kernel, std::mt19937& random) {
  Resize picture(filter, from, to, kernel);
  const uint8_t* rows = rgbx.data();
  while (picture.rows_left() != 0) {
    const size_t strip = check::below(std::min<size_t>(picture.rows_left(), 9) + 1, random);
    picture.add(rows, strip);
    rows += strip * picture.row_bytes();
  }
  std::vector<uint8_t> rgb(to.width * to.height * 3);
  picture.write(rgb.data());
  return rgb;
}

void check_kernel(const ResizeKernel& kernel, std::mt19937& random) {
  const auto up_to = [&random](size_t most) { return 1 + check::below(most, random); };
  for (int i = 0; i < 60; ++i) {
    for (const char* filter : {"box", "bilinear", "hamming", "bicubic", "lanczos"}) {
      const Size from{up_to(i % 3 == 0 ? 400 : 12), up_to(40)}, to{up_to(i % 2 == 0 ? 12 : 90), up_to(40)};
      std::vector<uint8_t> rgbx(from.width * from.height * 4);
      for (auto& value : rgbx) {
        value = static_cast<uint8_t>(i % 4 == 0 ? 255 * (random() % 2) : random());  // hard edges overshoot
      }
      const auto expected = resize(rgbx, filter, from, to, *resize_kernel("plain"), random);
      if (resize(rgbx, filter, from, to, kernel, random) == expected) continue;
      check::fail("%s: %s, %zu x %zu to %zu x %zu", kernel.name, filter, from.width, from.height, to.width, to.height);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  return check::check_kernels(argc, argv, {"avx2", "neon"}, resize_kernel, check_kernel);
}
