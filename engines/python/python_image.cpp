// Takes rows of pixels from Python's buffers.
#include "python/python_image.h"

#include <nanobind/ndarray.h>

#include <memory>
#include <stdexcept>
#include <string_view>

#include "python/gil.h"

namespace nb = nanobind;

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

}  // namespace

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
