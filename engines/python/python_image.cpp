// A picture that is resized, as Python sees it. Knows no file.
#include "python/python_image.h"

#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>

#include "python/gil.h"

namespace nb = nanobind;

namespace blip2rt {

void PythonResize::add(const nb::bytes& rows) {
  const auto* data = static_cast<const uint8_t*>(rows.data());
  const size_t size = rows.size();
  const ReleasedGil released;
  const std::lock_guard locked(mutex_);
  if (size % picture_.row_bytes() != 0) throw std::invalid_argument("these are no whole rows");
  picture_.add(data, size / picture_.row_bytes());
}

nb::object PythonResize::result() const {
  const Size size = picture_.to();
  auto pixels = std::make_unique<uint8_t[]>(size.width * size.height * 3);
  {
    const ReleasedGil released;
    const std::lock_guard locked(mutex_);
    picture_.write(pixels.get());
  }
  uint8_t* data = pixels.get();
  const size_t shape[] = {size.height, size.width, 3};
  nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<uint8_t*>(p); });
  pixels.release();
  return nb::cast(nb::ndarray<nb::numpy, uint8_t>(data, 3, shape, owner));
}

}  // namespace blip2rt
