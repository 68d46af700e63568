// Maps of names in untrusted files. They hash with a key of the process, so nobody can craft names that collide.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <unordered_set>

namespace blip2rt {

struct NameHash {
  size_t operator()(std::string_view name) const;
};

template <class T>
using NameMap = std::unordered_map<std::string_view, T, NameHash>;
using NameSet = std::unordered_set<std::string_view, NameHash>;

}  // namespace blip2rt
