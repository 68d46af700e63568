// libFuzzer's entry for the core's tokenizers: a tokenizer.json, and behind a zero byte a text for it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string all(reinterpret_cast<const char*>(data), size);
  const size_t zero = std::min(all.find('\0'), size);
  const std::string text = zero < size ? all.substr(zero + 1)
                                       : "A dog, 2 cats; \xC3\x9Cn\xC3\xAF"
                                         "code \xE6\x97\xA5 <s>.";
  try {
    const blip2rt::Tokenizer tokenizer(all.substr(0, zero));
    for (const bool plain : {false, true}) {
      const auto ids = tokenizer.encode({text, plain}, !plain, 64);
      tokenizer.decode(ids, plain);
      tokenizer.settled(ids.data(), ids.size());
    }
    const int64_t odd[] = {-1, 0, 1, 2, 3, 4, INT64_MAX};
    tokenizer.decode(odd, std::size(odd), false);
    tokenizer.each_token(300, [](std::string_view) {});
  } catch (const blip2rt::TokenizerError&) {
  }
  return 0;
}
