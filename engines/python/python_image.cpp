// Takes a picture's rows from Python and returns the resized picture. Knows no file.
#include "python/python_image.h"

#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>

#include "kernels/resize/resize.h"
#include "python/casters.h"
#include "python/gil.h"

namespace nb = nanobind;

namespace blip2rt {

nb::object resize(const nb::typed<nb::iterable, nb::bytes>& strips, std::pair<size_t, size_t> from,
                  std::pair<size_t, size_t> to, const std::string& filter) {
  Resize picture(filter, {from.first, from.second}, {to.first, to.second});
  for (nb::handle strip : strips) {
    nb::bytes rows;
    if (!nb::try_cast(strip, rows)) throw nb::type_error("a strip is not bytes");
    if (rows.size() % picture.row_bytes() != 0) throw std::invalid_argument("a strip is no whole rows");
    const auto* data = static_cast<const uint8_t*>(rows.data());
    const ReleasedGil released;
    picture.add(data, rows.size() / picture.row_bytes());
  }
  auto pixels = std::make_unique<uint8_t[]>(to.first * to.second * 3);
  {
    const ReleasedGil released;
    picture.write(pixels.get());
  }
  uint8_t* data = pixels.get();
  const size_t shape[] = {to.second, to.first, 3};
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
  pixels.release();
  return nb::cast(nb::ndarray<nb::numpy, uint8_t>(data, 3, shape, owner));
}

}  // namespace blip2rt
