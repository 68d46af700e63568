// Prompts, tokenizers and their specs between Python and the language side.
#pragma once

#include <nanobind/nanobind.h>

#include <memory>
#include <string>
#include <vector>

#include "language/tokenizers.h"
#include "python/casters.h"
#include "python/errors.h"

namespace blip2rt {

// Reads a blip2rt.text.Prompt, or a str, which is a caller's text without a template. Raises OptionError.
Prompt read_prompt(nanobind::handle source);

// The core's tokenizer, which the caller keeps alive, or another object with its functions.
std::shared_ptr<const Tokenizer> tokenizer_of(nanobind::object object);

// Reads a blip2rt.bundle.manifest.LlmSpec.
LlmSpec llm_spec_of(nanobind::handle given);

std::vector<std::string> utf8_of(const std::vector<CallerText>& texts);

}  // namespace blip2rt

namespace nanobind::detail {

template <>
struct type_caster<blip2rt::Prompt> {
  NB_TYPE_CASTER(blip2rt::Prompt, const_name("Prompt | str"))
  template <class Flags>
  bool from_python(handle source, Flags, cleanup_list*) {
    value = blip2rt::read_prompt(source);
    return true;
  }
};

}  // namespace nanobind::detail
