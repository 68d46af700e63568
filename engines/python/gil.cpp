// Compiled without exceptions: then glibc's pthread_exit() jumps to the handler below instead of unwinding this frame,
// whose unwinder may be another than glibc's.
#include "python/gil.h"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "base/system.h"

namespace blip2rt {

void call_while_python_lives(void (*work)(void*), void* argument) {
#if defined(_WIN32)
  work(argument);  // a thread ends there without unwinding
#else
  pthread_cleanup_push([](void*) { sleep_until_exit(); }, nullptr);
  work(argument);
  pthread_cleanup_pop(0);
#endif
}

}  // namespace blip2rt
