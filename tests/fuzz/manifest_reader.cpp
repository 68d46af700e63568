// libFuzzer's entry for manifests of bundles.
#include <cstddef>
#include <cstdint>
#include <string>

#include "bundle/manifest.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    blip2rt::read_manifest({reinterpret_cast<const char*>(data), size}, "blip2rt.json");
  } catch (const blip2rt::Error&) {
  }
  return 0;
}
