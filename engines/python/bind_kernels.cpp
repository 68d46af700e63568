// What the processor has, and pictures that are being resized, from Python's buffers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>

#include "graphs/rewrite.h"
#include "kernels/resize/resize.h"
#include "python/bind.h"
#include "python/casters.h"
#include "python/gil.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

using Pixels = nb::ndarray<nb::numpy, uint8_t>;

// Does not call Python: if the interpreter exits, a thread that waits there is unwound.
class PythonResize {
 public:
  PythonResize(std::pair<size_t, size_t> from, std::pair<size_t, size_t> to, const std::string& filter)
      : picture_(filter, {from.first, from.second}, {to.first, to.second}) {}

  // Adds rows of RGBX from the top.
  void add(const nb::bytes& rows);

  // Returns (height, width, 3) uint8 when all rows were added.
  Pixels result() const;

 private:
  Resize picture_;
  mutable std::mutex mutex_;
};

void PythonResize::add(const nb::bytes& rows) {
  const auto* data = static_cast<const uint8_t*>(rows.data());
  const size_t size = rows.size();
  const ReleasedGil released;
  const std::lock_guard locked(mutex_);
  if (size % picture_.row_bytes() != 0) throw std::invalid_argument("these are no whole rows");
  picture_.add(data, size / picture_.row_bytes());
}

Pixels PythonResize::result() const {
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
  return Pixels(data, 3, shape, owner);
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.def("processor_kernels", &processor_kernels);
  m.def("kernel_levels", &kernel_levels);
  m.def("missing_instructions", &missing_instructions);
  nb::class_<PythonResize>(m, "Resize")
      .def(nb::init<std::pair<size_t, size_t>, std::pair<size_t, size_t>, const std::string&>(), "from_size"_a,
           "to_size"_a, "filter"_a,
           "Start without rows. Raises ValueError. from_size, to_size: (width, height), at least 1. filter: \"box\", "
           "\"bilinear\", \"hamming\", \"bicubic\" or \"lanczos\", with Pillow's meaning.")
      .def("add", &PythonResize::add, "rows"_a,
           "Add the next whole rows from the top, four bytes a pixel (RGBX). Raises ValueError.")
      .def("result", &PythonResize::result, "Return (height, width, 3). Raises ValueError if rows are missing.");
}

}  // namespace blip2rt
