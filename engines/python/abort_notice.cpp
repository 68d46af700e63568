// Installs a handler of SIGABRT. Rust and C++ abort if a small allocation fails.
#include "python/abort_notice.h"

#include <unistd.h>

#include <csignal>

namespace blip2rt {
namespace {

char message[256];
size_t length = 0;
volatile sig_atomic_t target = -1;
struct sigaction previous;

void write_message(int) {
  if (target >= 0 && write(target, message, length) < 0) return;  // abort() then ends the process
}

}  // namespace

void announce_abort(int descriptor, const std::string& line) {
  if (descriptor < 0) {
    if (target >= 0) sigaction(SIGABRT, &previous, nullptr);
    target = -1;
    return;
  }
  length = line.copy(message, sizeof message);
  target = descriptor;
  struct sigaction handler = {};
  handler.sa_handler = write_message;
  sigaction(SIGABRT, &handler, &previous);
}

}  // namespace blip2rt
