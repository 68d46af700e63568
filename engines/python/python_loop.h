// Converts between Python and the loop: embeddings in, tokens and sequences out. Handles Ctrl-C while the loop runs.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>

#include <chrono>
#include <cstdint>
#include <utility>
#include <vector>

#include "loop/generator.h"
#include "loop/request.h"
#include "python/casters.h"
#include "python/gil.h"
#include "search/search.h"

namespace blip2rt {

// Checks for Ctrl-C while the GIL is released. Taking the GIL may wait for other Python threads, so it checks only
// every 50 ms.
class SignalCheck {
 public:
  void operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (now - last_ < std::chrono::milliseconds(50)) return;
    const HeldGil held;
    int raised = 0;
    while_python_lives([&raised] { raised = PyErr_CheckSignals(); });
    if (raised != 0) throw nanobind::python_error();
    last_ = std::chrono::steady_clock::now();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

// Throws std::runtime_error for anything but float32 (images, length, hidden_size).
Prefix borrow_prefix(const Generator& generator, nanobind::handle prefix_embeds);

using Sequences = std::vector<std::vector<std::pair<std::vector<int64_t>, float>>>;
Sequences sequences_of(std::vector<std::vector<Hypothesis>> results);

using Added = std::vector<std::tuple<size_t, size_t, int64_t>>;
Added added_of(const std::vector<NewToken>& tokens);

}  // namespace blip2rt
