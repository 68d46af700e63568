// Handles that C programs hold: numbers in the shape of pointers, which are never used twice. A freed or foreign handle
// is therefore found to be one, and an object lives until the last call that uses it has returned.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace blip2rt {

inline std::atomic<uintptr_t> last_handle{0};  // of all kinds

// The objects of one kind. Any thread may use it.
template <class Handle, class Object>
class Handles {
 public:
  // Never destroyed: threads may outlive static objects.
  static Handles& all() {
    static auto& handles = *new Handles;
    return handles;
  }

  Handle* add(std::shared_ptr<Object> object) {
    const uintptr_t key = ++last_handle;
    const std::lock_guard lock(mutex_);
    objects_.emplace(key, std::move(object));
    return reinterpret_cast<Handle*>(key * kStep);
  }

  // Returns null for a handle that is null, freed or of another kind.
  std::shared_ptr<Object> find(const Handle* handle) const {
    const std::lock_guard lock(mutex_);
    const auto found = objects_.find(key_of(handle));
    return found == objects_.end() ? nullptr : found->second;
  }

  void remove(const Handle* handle) {
    std::shared_ptr<Object> object;  // destroyed after the mutex is free
    const std::lock_guard lock(mutex_);
    const auto found = objects_.find(key_of(handle));
    if (found == objects_.end()) return;
    object = std::move(found->second);
    objects_.erase(found);
  }

 private:
  static constexpr uintptr_t kStep = 8;  // looks aligned

  // 0, which no object has, for what is no handle.
  static uintptr_t key_of(const Handle* handle) {
    const auto value = reinterpret_cast<uintptr_t>(handle);
    return value % kStep == 0 ? value / kStep : 0;
  }

  mutable std::mutex mutex_;
  std::unordered_map<uintptr_t, std::shared_ptr<Object>> objects_;
};

}  // namespace blip2rt
