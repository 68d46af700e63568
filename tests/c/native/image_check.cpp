// Prepares the images whose paths come from standard input, for tests that compare the pixels with blip2rt.image.
// Arguments: width, height, filter, max_pixels, scaled (0 or 1). Writes for each image "ok" and its pixels, or an
// error.
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>

#include "media/image.h"

int main(int, char** argv) {
  using namespace blip2rt;
  const ImageTarget target{{std::strtoul(argv[1], nullptr, 10), std::strtoul(argv[2], nullptr, 10)}, argv[3]};
  const ImageRules rules{std::strtoul(argv[4], nullptr, 10), argv[5][0] == '1'};
  for (std::string path; std::getline(std::cin, path);) {
    try {
      const std::vector<uint8_t> rgb = prepare_file(path, target, rules);
      std::puts("ok");
      std::fwrite(rgb.data(), 1, rgb.size(), stdout);
    } catch (const ImageError& error) {
      std::puts(error.what());
    }
  }
}
