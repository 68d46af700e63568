// Strings and containers between Python and C++. nanobind's own casters end the process where memory is lacking,
// because they are noexcept; these throw std::bad_alloc, which becomes MemoryError. Included instead of
// nanobind/stl/{string,vector,map,optional}.h. Knows nothing of ours.
#pragma once

#include <nanobind/nanobind.h>

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace nanobind::detail {

// Reads a str. Returns false for anything else.
inline bool read_text(handle source, std::string& into) {
  if (!PyUnicode_Check(source.ptr())) return false;
  Py_ssize_t size = 0;
  const char* text = PyUnicode_AsUTF8AndSize(source.ptr(), &size);
  if (text == nullptr) {
    PyErr_Clear();
    return false;
  }
  into.assign(text, static_cast<size_t>(size));
  return true;
}

// Reads a sequence that is no str and no bytes. Returns false for anything else, or for an item of another type.
template <class T, class Flags>
bool read_items(handle source, std::vector<T>& into, Flags flags, cleanup_list* cleanup) {
  into.clear();
  if (!PySequence_Check(source.ptr()) || PyUnicode_Check(source.ptr()) || PyBytes_Check(source.ptr())) return false;
  const object items = steal(PySequence_Tuple(source.ptr()));  // what an item does when it is read changes nothing
  if (!items.is_valid()) {
    PyErr_Clear();
    return false;
  }
  const auto count = static_cast<size_t>(PyTuple_Size(items.ptr()));
  into.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    make_caster<T> caster;
    if (!caster.from_python(PyTuple_GetItem(items.ptr(), static_cast<Py_ssize_t>(i)), flags, cleanup)) return false;
    into.push_back(caster.operator cast_t<T>());
  }
  return true;
}

template <>
struct type_caster<std::string> {
  NB_TYPE_CASTER(std::string, const_name("str"))
  template <class Flags>
  bool from_python(handle source, Flags, cleanup_list*) {
    return read_text(source, value);
  }
  static handle from_cpp(const std::string& text, rv_policy, cleanup_list*) noexcept {
    return PyUnicode_FromStringAndSize(text.data(), static_cast<Py_ssize_t>(text.size()));
  }
};

template <class T>
struct type_caster<std::vector<T>> {
  NB_TYPE_CASTER(std::vector<T>,
                 io_name("collections.abc.Sequence", "list") + const_name("[") + make_caster<T>::Name + const_name("]"))
  template <class Flags>
  bool from_python(handle source, Flags flags, cleanup_list* cleanup) {
    return read_items(source, value, flags, cleanup);
  }
  template <class Items>
  static handle from_cpp(Items&& items, rv_policy policy, cleanup_list* cleanup) noexcept {
    object list = steal(PyList_New(static_cast<Py_ssize_t>(items.size())));
    if (!list.is_valid()) return {};
    Py_ssize_t at = 0;
    for (auto& item : items) {
      const handle made = make_caster<T>::from_cpp(forward_like_<Items>(item), policy, cleanup);
      if (!made.is_valid()) return {};
      PyList_SetItem(list.ptr(), at++, made.ptr());
    }
    return list.release();
  }
};

template <class T>
struct type_caster<std::map<std::string, T>> {
  using Map = std::map<std::string, T>;
  NB_TYPE_CASTER(Map, const_name("collections.abc.Mapping[str, ") + make_caster<T>::Name + const_name("]"))
  template <class Flags>
  bool from_python(handle source, Flags flags, cleanup_list* cleanup) {
    value.clear();
    const object items = steal(PyMapping_Check(source.ptr()) ? PyMapping_Items(source.ptr()) : nullptr);
    if (!items.is_valid()) {
      PyErr_Clear();
      return false;
    }
    for (Py_ssize_t i = 0; i < PyList_Size(items.ptr()); ++i) {
      PyObject* item = PyList_GetItem(items.ptr(), i);  // (name, value)
      std::string name;
      make_caster<T> caster;
      if (!PyTuple_Check(item) || PyTuple_Size(item) != 2 || !read_text(PyTuple_GetItem(item, 0), name) ||
          !caster.from_python(PyTuple_GetItem(item, 1), flags, cleanup)) {
        return false;
      }
      value.emplace(std::move(name), caster.operator cast_t<T>());
    }
    return true;
  }
};

template <class T>
struct type_caster<std::optional<T>> {
  NB_TYPE_CASTER(std::optional<T>, optional_name(make_caster<T>::Name))
  template <class Flags>
  bool from_python(handle source, Flags flags, cleanup_list* cleanup) {
    value.reset();
    if (source.is_none()) return true;
    make_caster<T> caster;
    if (!caster.from_python(source, flags, cleanup)) return false;
    value.emplace(caster.operator cast_t<T>());
    return true;
  }
  template <class Value>
  static handle from_cpp(Value&& given, rv_policy policy, cleanup_list* cleanup) noexcept {
    if (!given) return none().release();
    return make_caster<T>::from_cpp(forward_like_<Value>(*given), policy, cleanup);
  }
};

template <class T>
struct remove_opt_mono<std::optional<T>> : remove_opt_mono<T> {};

template <class T>
struct has_arg_defaults<std::optional<T>> : std::true_type {};

}  // namespace nanobind::detail
