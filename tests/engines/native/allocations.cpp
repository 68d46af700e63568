// Preloaded into a process, counts the allocations of blip2rt._native, by operator new or aligned_alloc, directly or
// through libstdc++, and makes chosen ones fail. Tests call the exported functions through ctypes.
#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

enum Mode : int { kOff, kCount, kFailOnce, kFailFromThenOn };

std::atomic<int> mode{kOff};
std::atomic<long> requested{0}, failing{0}, failed{0};
thread_local bool in_backtrace = false;

bool contains(const char* file, const char* name) { return file != nullptr && std::strstr(file, name) != nullptr; }

// Returns whether the first caller outside this library and libstdc++ is the core.
bool called_by_core() {
  if (in_backtrace) return false;
  in_backtrace = true;
  void* frames[12];
  const int count = backtrace(frames, 12);
  bool found = false;
  for (int i = 0; i < count; ++i) {
    Dl_info info;
    if (dladdr(frames[i], &info) == 0 || contains(info.dli_fname, "allocations") ||
        contains(info.dli_fname, "libstdc++")) {
      continue;
    }
    found = contains(info.dli_fname, "_native");
    break;
  }
  in_backtrace = false;
  return found;
}

bool fails() {
  const int now = mode.load(std::memory_order_relaxed);
  if (now == kOff || !called_by_core()) return false;
  const long number = requested.fetch_add(1) + 1;
  const bool fail = (now == kFailOnce && number == failing) || (now == kFailFromThenOn && number >= failing);
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

// Starts to count allocations, and makes the one with this number fail (0: none), and later ones too if `persistent`.
extern "C" void fail_allocation(long number, int persistent) {
  mode = kOff;
  requested = failed = 0;
  failing = number;
  mode = number == 0 ? kCount : persistent != 0 ? kFailFromThenOn : kFailOnce;
}

// Stops counting. Returns the number of allocations, and in `count` how many failed.
extern "C" long allocations(long* count) {
  mode = kOff;
  *count = failed;
  return requested;
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
