// A picture that is being resized, as a Python class.
#pragma once

#include <nanobind/nanobind.h>

#include <mutex>
#include <string>
#include <utility>

#include "kernels/resize/resize.h"

namespace blip2rt {

// Does not call Python: if the interpreter exits, a thread that waits there is unwound.
class PythonResize {
 public:
  PythonResize(std::pair<size_t, size_t> from, std::pair<size_t, size_t> to, const std::string& filter)
      : picture_(filter, {from.first, from.second}, {to.first, to.second}) {}

  // Adds rows of RGBX from the top.
  void add(const nanobind::bytes& rows);
  // The capsules of an Arrow array, which is not copied.
  void add_lent(const nanobind::object& schema, const nanobind::object& rows);

  // Returns (height, width, 3) uint8 when all rows were added.
  nanobind::object result() const;

 private:
  void add_bytes(const uint8_t* data, size_t size);

  Resize picture_;
  mutable std::mutex mutex_;
};

}  // namespace blip2rt
