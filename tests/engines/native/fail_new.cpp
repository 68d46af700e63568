// Preloaded into a process, lets requests for memory fail that the code of blip2rt._native makes: by operator new or
// aligned_alloc, itself or through libstdc++. A test calls what is exported here through ctypes.
#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

enum Mode : int { kOff, kCount, kOnce, kFromThenOn };

std::atomic<int> mode{kOff};
std::atomic<long> asked{0}, failing{0}, failed{0};
thread_local bool looking = false;

bool is_in(const char* file, const char* name) { return file != nullptr && std::strstr(file, name) != nullptr; }

// Returns whether the first caller beyond this library and libstdc++ is the core.
bool of_core() {
  if (looking) return false;
  looking = true;
  void* frames[12];
  const int count = backtrace(frames, 12);
  bool found = false;
  for (int i = 0; i < count; ++i) {
    Dl_info info;
    if (dladdr(frames[i], &info) == 0 || is_in(info.dli_fname, "fail_new") || is_in(info.dli_fname, "libstdc++")) {
      continue;
    }
    found = is_in(info.dli_fname, "_native");
    break;
  }
  looking = false;
  return found;
}

bool fails() {
  const int now = mode.load(std::memory_order_relaxed);
  if (now == kOff || !of_core()) return false;
  const long number = asked.fetch_add(1) + 1;
  const bool fail = (now == kOnce && number == failing) || (now == kFromThenOn && number >= failing);
  if (fail) failed.fetch_add(1);
  return fail;
}

void* allocate(std::size_t size) {
  if (!fails()) {
    if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  }
  throw std::bad_alloc();
}

}  // namespace

// Lets the request with this number fail from now on: 0 none, `persistent` all that follow it, too.
extern "C" void fail_allocation(long number, int persistent) {
  mode = kOff;
  asked = failed = 0;
  failing = number;
  mode = number == 0 ? kCount : persistent != 0 ? kFromThenOn : kOnce;
}

// Ends that. Returns how many requests there were, and in `count` how many of them failed.
extern "C" long allocations(long* count) {
  mode = kOff;
  *count = failed;
  return asked;
}

extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  void* memory = nullptr;
  return fails() || posix_memalign(&memory, alignment, size) != 0 ? nullptr : memory;
}

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return fails() ? nullptr : std::malloc(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return fails() ? nullptr : std::malloc(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { std::free(memory); }
