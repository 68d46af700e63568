// Errors of C++ as those of blip2rt.errors, and texts of callers, whose faults are such errors.
#pragma once

#include <nanobind/nanobind.h>

#include <exception>
#include <string>

namespace blip2rt {

// A translator of nanobind's.
void translate_error(const std::exception_ptr& error, void*);

// A str of a caller's, as UTF-8. Anything else, and lone surrogates, raise OptionError.
struct CallerText {
  std::string utf8;
};

CallerText read_caller_text(nanobind::handle source);

}  // namespace blip2rt

namespace nanobind::detail {

template <>
struct type_caster<blip2rt::CallerText> {
  NB_TYPE_CASTER(blip2rt::CallerText, const_name("str"))
  template <class Flags>
  bool from_python(handle source, Flags, cleanup_list*) {
    value = blip2rt::read_caller_text(source);
    return true;
  }
};

}  // namespace nanobind::detail
