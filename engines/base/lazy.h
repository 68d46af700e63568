// A value that its first reader makes. Any thread may read it; if making it throws, the next reader makes it again.
// (After an exception, std::call_once waits for ever under TSan and with libstdc++ on musl.)
#pragma once

#include <atomic>
#include <mutex>

namespace blip2rt {

template <class Value>
class Lazy {
 public:
  template <class Make>
  const Value& get(const Make& make) {
    if (made_) return value_;
    const std::lock_guard lock(mutex_);
    if (!made_) value_ = make();
    made_ = true;
    return value_;
  }

 private:
  std::atomic<bool> made_{false};
  std::mutex mutex_;
  Value value_;
};

}  // namespace blip2rt
