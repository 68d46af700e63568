// Preloaded into a process, counts the allocations of blip2rt._native, by operator new or aligned_alloc, directly or
// through libstdc++. Tests call the exported functions through ctypes.
#include <dlfcn.h>
#include <execinfo.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {

std::atomic<bool> counting{false};
std::atomic<long> requested{0};
thread_local bool in_backtrace = false;

bool contains(const char* file, const char* name) { return file != nullptr && std::strstr(file, name) != nullptr; }

// Counts an allocation if the first caller outside this library and libstdc++ is the core.
void count() {
  if (!counting || in_backtrace) return;
  in_backtrace = true;
  void* frames[12];
  const int depth = backtrace(frames, 12);
  for (int i = 0; i < depth; ++i) {
    Dl_info info;
    if (dladdr(frames[i], &info) == 0 || contains(info.dli_fname, "allocations") ||
        contains(info.dli_fname, "libstdc++")) {
      continue;
    }
    if (contains(info.dli_fname, "_native")) ++requested;
    break;
  }
  in_backtrace = false;
}

void* allocate(std::size_t size) {
  count();
  if (void* memory = std::malloc(size == 0 ? 1 : size)) return memory;
  throw std::bad_alloc();
}

}  // namespace

extern "C" void count_allocations() {
  requested = 0;
  counting = true;
}

// Stops counting.
extern "C" long allocations() {
  counting = false;
  return requested;
}

extern "C" void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
  count();
  void* memory = nullptr;
  return posix_memalign(&memory, alignment, size) != 0 ? nullptr : memory;
}

void* operator new(std::size_t size) { return allocate(size); }
void* operator new[](std::size_t size) { return allocate(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
