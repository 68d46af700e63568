#include "python/errors.h"

#include <new>
#include <stdexcept>

#include "base/error.h"
#include "base/utf8.h"
#include "python/casters.h"
#include "text/tokenizer_types.h"

namespace nb = nanobind;

namespace blip2rt {
namespace {

const char* class_of(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::kArgument: return "OptionError";
    case ErrorKind::kModel: return "BundleError";
    case ErrorKind::kCapability: return "CapabilityError";
    case ErrorKind::kTimeout: return "DeadlineError";
    case ErrorKind::kBackend: break;
  }
  return "BackendError";
}

void raise(const Error& error) {
  try {
    const nb::object type = nb::module_::import_("blip2rt.errors").attr(class_of(error.kind));
    const std::string text = error.what();  // a path in it may be no UTF-8; Blip2rtError makes it one line
    const nb::object message =
        nb::steal(PyUnicode_DecodeUTF8(text.data(), static_cast<Py_ssize_t>(text.size()), "surrogateescape"));
    if (message.is_valid()) PyErr_SetObject(type.ptr(), message.ptr());
  } catch (nb::python_error& failed) {
    failed.restore();
  }
}

}  // namespace

// The texts of errors may quote untrusted bytes, and Python takes UTF-8 only.
void translate_error(const std::exception_ptr& error, void*) {
  try {
    std::rethrow_exception(error);
  } catch (const nb::builtin_exception&) {
    throw;
  } catch (const std::length_error&) {  // a container larger than any memory
    PyErr_SetString(PyExc_MemoryError, "out of memory");
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, "out of memory");
  } catch (const TokenizerError& error) {
    PyObject* type = error.kind == TokenizerError::kUnknown ? PyExc_NotImplementedError : PyExc_RuntimeError;
    PyErr_SetString(type, single_line(error.what()).c_str());
  } catch (const Error& error) {
    raise(error);
  } catch (const std::runtime_error& error) {
    PyErr_SetString(PyExc_RuntimeError, single_line(error.what()).c_str());
  }
}

CallerText read_caller_text(nb::handle source) {
  CallerText text;
  if (nb::detail::read_text(source, text.utf8)) return text;
  if (!PyUnicode_Check(source.ptr())) {
    const nb::object type = nb::borrow(nb::handle(reinterpret_cast<PyObject*>(Py_TYPE(source.ptr()))));
    throw Error(ErrorKind::kArgument, "a text is " + nb::cast<std::string>(type.attr("__name__")) + ", not str");
  }
  throw Error(ErrorKind::kArgument, "the text " + nb::cast<std::string>(nb::repr(source)) + " is not valid Unicode");
}

}  // namespace blip2rt
