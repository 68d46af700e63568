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

// A text that C reads to its end: U+0000 becomes U+FFFD.
inline std::string without_nul(std::string text) {
  for (size_t at = text.find('\0'); at != std::string::npos; at = text.find('\0', at)) text.replace(at, 1, "\uFFFD");
  return text;
}

struct Error : std::runtime_error {
  Error(ErrorKind kind, Faults all) : std::runtime_error(without_nul(joined(all))), kind(kind), faults(std::move(all)) {
    for (std::string& fault : faults) fault = without_nul(std::move(fault));
  }
  Error(ErrorKind kind, std::string fault) : Error(kind, Faults{std::move(fault)}) {}
  ErrorKind kind;
  Faults faults;
};

}  // namespace blip2rt
