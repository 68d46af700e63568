// The log-probability of given texts.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "loop/generator.h"

namespace blip2rt {

// Returns for each text the sum of its tokens' log-probabilities behind [prefix][prompt] of its image: texts[i] is of
// image images[i]. An image whose texts follow each other is read once. Calls `before_run` before every run of the
// graph; what it throws ends the call. Holds no state between calls: any number of threads
// may call it.
std::vector<double> likelihoods(const Generator& generator, const Prefix& prefix, const Prompts& prompts,
                                const std::vector<size_t>& images, const Prompts& texts,
                                const std::function<void()>& before_run);

}  // namespace blip2rt
