// What the processor has, the sources of GPU kernels, and pictures that are being resized, from Python's buffers.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

#include "graphs/rewrite.h"
#include "kernel_sources.h"
#include "kernels/resize/resize.h"
#include "python/bind.h"
#include "python/casters.h"
#include "python/gil.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace blip2rt {
namespace {

// Arrow's C data interface, whose layout never changes (arrow.apache.org/docs/format/CDataInterface.html).
struct ArrowSchema {
  const char *format, *name, *metadata;
  int64_t flags, child_count;
  ArrowSchema **children, *dictionary;
  void (*release)(ArrowSchema*);
  void* private_data;
};

struct ArrowArray {
  int64_t length, null_count, offset, buffer_count, child_count;
  const void** buffers;
  ArrowArray **children, *dictionary;
  void (*release)(ArrowArray*);
  void* private_data;
};

// Whether elements are four bytes: a list of booleans has as many values, but takes an eighth of the memory.
bool has_four_bytes(const ArrowSchema& schema) {
  return schema.release != nullptr && std::string_view(schema.format) == "+w:4" && schema.child_count == 1 &&
         std::string_view(schema.children[0]->format) == "C";
}

using Pixels = nb::ndarray<nb::numpy, uint8_t>;

// Does not call Python: if the interpreter exits, a thread that waits there is unwound.
class PythonResize {
 public:
  PythonResize(std::pair<size_t, size_t> from, std::pair<size_t, size_t> to, const std::string& filter)
      : picture_(filter, {from.first, from.second}, {to.first, to.second}) {}

  // Adds rows of RGBX from the top.
  void add(const nb::bytes& rows);
  // The capsules of an Arrow array, which is not copied.
  void add_lent(const nb::object& schema, const nb::object& rows);

  // Returns (height, width, 3) uint8 when all rows were added.
  Pixels result() const;

 private:
  void add_bytes(const uint8_t* data, size_t size);

  Resize picture_;
  mutable std::mutex mutex_;
};

void PythonResize::add(const nb::bytes& rows) { add_bytes(static_cast<const uint8_t*>(rows.data()), rows.size()); }

void PythonResize::add_lent(const nb::object& schema, const nb::object& rows) {
  const auto* type = static_cast<const ArrowSchema*>(PyCapsule_GetPointer(schema.ptr(), "arrow_schema"));
  if (type == nullptr) throw nb::python_error();
  const auto* pixels = static_cast<const ArrowArray*>(PyCapsule_GetPointer(rows.ptr(), "arrow_array"));
  if (pixels == nullptr) throw nb::python_error();
  const bool fours =
      has_four_bytes(*type) && pixels->release != nullptr && pixels->child_count == 1 && pixels->offset == 0;
  const ArrowArray* bytes = fours ? pixels->children[0] : nullptr;
  if (bytes == nullptr || bytes->buffer_count != 2 || bytes->offset != 0 || bytes->length != 4 * pixels->length ||
      bytes->buffers[1] == nullptr) {
    throw std::invalid_argument("this array has not four bytes a pixel");
  }
  add_bytes(static_cast<const uint8_t*>(bytes->buffers[1]), static_cast<size_t>(bytes->length));
}

void PythonResize::add_bytes(const uint8_t* data, size_t size) {
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
  m.def(
      "kernels",
      [] {
        nb::dict headers;
        for (const KernelSource& header : kKernelHeaders) headers[header.name] = header.text;
        return std::pair<std::string, nb::dict>(kKernels.text, headers);
      },
      "Return the source of the GPU kernels, and the headers that it includes, by name.");

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
      .def("add_lent", &PythonResize::add_lent, "schema"_a, "rows"_a,
           "Add rows from the capsules of `__arrow_c_array__`, four bytes a pixel, without a copy. Raises ValueError.")
      .def("result", &PythonResize::result, "Return (height, width, 3). Raises ValueError if rows are missing.");
}

}  // namespace blip2rt
