// Reads JSON objects into structs, and collects faults with their place: "llm.layers is 'x', not int".
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace blip2rt {

inline constexpr size_t kMaxFaults = 20;  // reported at once

// Thrown with the last of them.
struct TooManyFaults {};

// The fields of an object; unknown ones are ignored. read_fields(Fields&, T&) reads a struct.
class Fields {
 public:
  // `where`: the object's place in the document; empty for the document itself.
  Fields(Json json, std::string where, Faults& faults);

  // Names and places of fields, in turns, that must be there, or that have defaults.
  template <class T, class... More>
  void required(const char* name, T& into, More&&... more) {
    if (is_object_ && !read(name, into)) add(place(name) + " is missing");
    if constexpr (sizeof...(more) > 0) required(std::forward<More>(more)...);
  }
  template <class T, class... More>
  void optional(const char* name, T& into, More&&... more) {
    read(name, into);
    if constexpr (sizeof...(more) > 0) optional(std::forward<More>(more)...);
  }

 private:
  template <class T>
  bool read(const char* name, T& into) {
    const auto field = fields_.find(name);
    if (field != fields_.end()) convert(field->second, place(name), into);
    return field != fields_.end();
  }

  std::string place(std::string_view name) const;
  void add(std::string fault);
  void wrong(const std::string& where, Json value, const char* wanted);

  void require_few(const std::string& where, size_t count);
  bool is_list(Json json, const std::string& where);
  std::map<std::string_view, Json> entries(Json json, const std::string& where);

  void convert(Json json, const std::string& where, std::string& into);
  void convert(Json json, const std::string& where, bool& into);
  void convert(Json json, const std::string& where, double& into);
  void convert(Json json, const std::string& where, int64_t& into);
  void convert(Json json, const std::string& where, std::variant<int64_t, std::string>& into);

  template <class T>
  void convert(Json json, const std::string& where, std::optional<T>& into) {
    if (json.kind() != Json::kNull) convert(json, where, into.emplace());
  }
  template <class T>
  void convert(Json json, const std::string& where, std::vector<T>& into) {
    if (!is_list(json, where)) return;
    for (const Json each : json) {
      const std::string item = where + "[" + std::to_string(into.size()) + "]";
      convert(each, item, into.emplace_back());
    }
  }
  template <class T>
  void convert(Json json, const std::string& where, std::map<std::string, T>& into) {
    for (const auto& [key, value] : entries(json, where)) {
      convert(value, where + "." + std::string(key), into[std::string(key)]);
    }
  }
  template <class T>
  auto convert(Json json, const std::string& where, T& into) -> decltype(read_fields(*this, into)) {
    Fields fields(json, where, faults_);
    read_fields(fields, into);
  }

  std::string where_;
  Faults& faults_;
  bool is_object_;
  std::map<std::string_view, Json> fields_;
};

// A value as a message shows it.
std::string shown(Json value);

}  // namespace blip2rt
