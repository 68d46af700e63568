// What several files here bind or read: options of the search, prompts, tokenizers, and specs of a manifest.
#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "language/tokenizers.h"
#include "python/casters.h"
#include "python/errors.h"
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

// Reads a blip2rt.language.Prompt, or a str, which is a caller's text without a template. Raises OptionError.
Prompt read_prompt(nanobind::handle source);

// A tokenizer that the caller keeps alive.
std::shared_ptr<const Tokenizer> borrowed(const Tokenizer& tokenizer);

// Read parts of blip2rt.bundle.manifest: an LlmSpec, a RetrievalSpec or QuestionSpec, a Calibration or None; and what a
// judge needs of a blip2rt.bundle.Bundle.
LlmSpec llm_spec_of(nanobind::handle given);
QFormerTextSpec text_spec_of(nanobind::handle given);
std::optional<Calibration> calibration_of(nanobind::handle given);
Bundle bundle_of(nanobind::handle given);

std::vector<std::string> utf8_of(const std::vector<CallerText>& texts);

}  // namespace blip2rt

namespace nanobind::detail {

template <>
struct type_caster<blip2rt::Prompt> {
  NB_TYPE_CASTER(blip2rt::Prompt, io_name("blip2rt.language.Prompt | str", "blip2rt.language.Prompt"))
  template <class Flags>
  bool from_python(handle source, Flags, cleanup_list*) {
    value = blip2rt::read_prompt(source);
    return true;
  }
  static handle from_cpp(const blip2rt::Prompt& prompt, rv_policy, cleanup_list*) {
    return module_::import_("blip2rt.language").attr("Prompt")(prompt.before, prompt.text, prompt.after).release();
  }
};

}  // namespace nanobind::detail
