// Errors about what a user gave: each fault with its fix, "what is wrong: the fix".
#pragma once

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace blip2rt {

enum class ErrorKind { kArgument, kModel, kCapability, kTimeout, kBackend };

using Faults = std::vector<std::string>;

inline std::string joined(const Faults& parts, const char* separator = "; ") {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : separator) + part;
  return text;
}

struct Error : std::runtime_error {
  Error(ErrorKind kind, Faults all) : std::runtime_error(joined(all)), kind(kind), faults(std::move(all)) {}
  Error(ErrorKind kind, std::string fault) : Error(kind, Faults{std::move(fault)}) {}
  ErrorKind kind;
  Faults faults;
};

}  // namespace blip2rt
