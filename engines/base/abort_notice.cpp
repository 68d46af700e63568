// Installs a handler of SIGABRT. Rust and C++ abort if a small allocation fails.
#include "base/abort_notice.h"

#include <csignal>

#include "base/system.h"

namespace blip2rt {
namespace {

char message[256];
size_t length = 0;
volatile sig_atomic_t target = -1;

void write_message(int) {
  if (target >= 0 && !write_bytes(target, message, length)) return;  // abort() then ends the process
}

#if defined(_WIN32)
void (*previous)(int) = SIG_DFL;
void install() { previous = std::signal(SIGABRT, write_message); }
void restore() { std::signal(SIGABRT, previous); }
#else
struct sigaction previous;
void install() {
  struct sigaction handler = {};
  handler.sa_handler = write_message;
  sigaction(SIGABRT, &handler, &previous);
}
void restore() { sigaction(SIGABRT, &previous, nullptr); }
#endif

}  // namespace

void announce_abort(int descriptor, const std::string& line) {
  if (descriptor < 0) {
    if (target >= 0) restore();
    target = -1;
    return;
  }
  length = line.copy(message, sizeof message);
  target = descriptor;
  install();
}

}  // namespace blip2rt
