// Prefetches rows of memory in small steps while other work runs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace blip2rt {
namespace {

// Prefetches rows that will be read later, a few cache lines in each of `steps` steps: prefetching all at once would
// delay the loads needed now. Interleaves four streams, because a single stream stalls at every page boundary.
class Prefetcher {
 public:
  Prefetcher(const void* base, size_t rows, size_t stride, size_t bytes, size_t steps)
      : row_(static_cast<const uint8_t*>(base)),
        rows_((rows + kStreams - 1) / kStreams),
        stride_(stride),
        stream_distance_(rows_ * stride),
        lines_((bytes + kCacheLineBytes - 1) / kCacheLineBytes),
        lines_per_step_((rows_ * lines_ + steps - 1) / steps) {}

  void step() {
    for (size_t i = 0; i < lines_per_step_ && rows_ > 0; ++i) {
      const uint8_t* line = row_ + line_ * kCacheLineBytes;
      for (size_t stream = 0; stream < kStreams; ++stream) __builtin_prefetch(line + stream * stream_distance_, 0, 2);
      if (++line_ < lines_) continue;
      line_ = 0;
      row_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr size_t kStreams = 4, kCacheLineBytes = 64;
  const uint8_t* row_;
  size_t rows_, stride_, stream_distance_, lines_, lines_per_step_, line_ = 0;
};

}  // namespace
}  // namespace blip2rt
