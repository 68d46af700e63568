// JSON values -> C++ values. Numbers are whole if they are written so: 2, not 2.0.
#include "bundle/json_fields.h"

#include <charconv>
#include <utility>

#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr size_t kMaxEntries = 10'000;

}  // namespace

std::string shown(Json value) {
  switch (value.kind()) {
    case Json::kNull: return "None";
    case Json::kFalse: return "False";
    case Json::kTrue: return "True";
    case Json::kNumber: return shortened(value.digits());
    case Json::kString: return in_quotes(value.text());
    case Json::kDeferred: return "a list";
    case Json::kArray: return value.size() == 0 ? "[]" : "a list";
    case Json::kObject: return value.size() == 0 ? "{}" : "an object";
  }
  return "";
}

Fields::Fields(Json json, std::string where, Faults& faults)
    : where_(std::move(where)), faults_(faults), is_object_(json.kind() == Json::kObject) {
  fields_ = entries(json, where_.empty() ? "the manifest" : where_);
}

std::string Fields::place(std::string_view name) const {
  return where_.empty() ? std::string(name) : where_ + "." + std::string(name);
}

void Fields::add(std::string fault) {
  faults_.push_back(std::move(fault));
  if (faults_.size() == kMaxFaults) throw TooManyFaults();
}

void Fields::wrong(const std::string& where, Json value, const char* wanted) {
  add(where + " is " + shown(value) + ", not " + wanted);
}

void Fields::require_few(const std::string& where, size_t count) {
  if (count <= kMaxEntries) return;
  faults_.push_back(where + " has " + with_commas(count) + " entries, more than " + with_commas(kMaxEntries));
  throw TooManyFaults();
}

bool Fields::is_list(Json json, const std::string& where) {
  if (json.kind() == Json::kArray) {
    require_few(where, json.size());
  } else {
    wrong(where, json, "a list");
  }
  return json.kind() == Json::kArray;
}

std::map<std::string_view, Json> Fields::entries(Json json, const std::string& where) {
  std::map<std::string_view, Json> found;
  if (json.kind() != Json::kObject) {
    wrong(where, json, "an object");
    return found;
  }
  require_few(where, json.size() / 2);
  for (auto at = json.begin(); at != json.end(); ++at) {
    const std::string_view key = (*at).text();
    ++at;
    if (!found.emplace(key, *at).second) add(where + " has the key " + in_quotes(key) + " twice");
  }
  return found;
}

void Fields::convert(Json json, const std::string& where, std::string& into) {
  if (json.kind() != Json::kString) return wrong(where, json, "str");
  into = json.text();
}

void Fields::convert(Json json, const std::string& where, bool& into) {
  if (json.kind() != Json::kTrue && json.kind() != Json::kFalse) return wrong(where, json, "bool");
  into = json.kind() == Json::kTrue;
}

void Fields::convert(Json json, const std::string& where, double& into) {
  if (json.kind() != Json::kNumber) return wrong(where, json, "float");
  into = json.number();
}

void Fields::convert(Json json, const std::string& where, int64_t& into) {
  if (json.kind() != Json::kNumber) return wrong(where, json, "int");
  const std::string_view digits = json.digits();
  const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), into);
  if (error == std::errc::result_out_of_range) return wrong(where, json, "an int of 64 bits");
  if (stop != digits.data() + digits.size()) wrong(where, json, "int");
}

void Fields::convert(Json json, const std::string& where, std::variant<int64_t, std::string>& into) {
  if (json.kind() == Json::kString) {
    into = std::string(json.text());
  } else if (json.kind() == Json::kNumber) {
    convert(json, where, std::get<int64_t>(into));
  } else {
    wrong(where, json, "int or str");
  }
}

}  // namespace blip2rt
