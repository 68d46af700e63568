// Tells the user why the process ends, where a library aborts instead of reporting an error.
#pragma once

#include <string>

namespace blip2rt {

// Writes `line` to a file descriptor if the process aborts from now on. A negative descriptor ends that.
void announce_abort(int descriptor, const std::string& line);

}  // namespace blip2rt
