// The threads on which all graphs of the process run their operators.
#pragma once

#include <cstddef>

namespace blip2rt {

// Calls work(data, part) for each of `parts` parts, on at most `threads` threads with the caller's. Returns when all
// have ended. If another caller uses the threads, the caller does all parts itself. `work` must not throw.
void run_on_threads(size_t parts, size_t threads, void (*work)(void* data, size_t part), void* data);

// Returns the number of threads for a run that names none: one per core that the process may use.
size_t default_threads();

}  // namespace blip2rt
