// Turns the loop's results into types that nanobind converts.
#include "python/python_loop.h"

#include <nanobind/ndarray.h>

#include <stdexcept>
#include <string>

namespace nb = nanobind;

namespace blip2rt {

Prefix borrow_prefix(const Generator& generator, nb::handle prefix_embeds) {
  nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu> prefix;
  const int width = generator.shape().hidden_size;
  if (!nb::try_cast(prefix_embeds, prefix, false) || prefix.shape(2) != static_cast<size_t>(width)) {
    throw std::runtime_error("prefix_embeds must be a C-contiguous float32 array (images, length, " +
                             std::to_string(width) + ")");
  }
  return {prefix.data(), static_cast<int>(prefix.shape(0)), static_cast<int>(prefix.shape(1))};
}

Sequences sequences_of(std::vector<std::vector<Hypothesis>> results) {
  Sequences sequences;
  for (auto& image : results) {
    auto& best = sequences.emplace_back();
    for (Hypothesis& hypothesis : image) best.emplace_back(std::move(hypothesis.tokens), hypothesis.score);
  }
  return sequences;
}

Added added_of(const std::vector<NewToken>& tokens) {
  Added added;
  for (const NewToken& token : tokens) added.emplace_back(token.image, token.draw, token.token);
  return added;
}

}  // namespace blip2rt
