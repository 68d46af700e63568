// The loop's options, which Python holds as an object or writes as a dict. Knows their names in Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <memory>

#include "search/options.h"

namespace blip2rt {

// A vocabulary that Python and options share: options may release it without the GIL.
struct PythonVocabulary {
  std::shared_ptr<const Vocabulary> shared;
};

// The same for a guide.
struct PythonGuide {
  std::shared_ptr<const Guide> shared;
};

// Reads GenerationOptions, or a dict of them. Throws std::runtime_error with every fault: unknown names, wrong types,
// bad values.
GenerationOptions options_from(nanobind::handle given, size_t vocab_size);

}  // namespace blip2rt
