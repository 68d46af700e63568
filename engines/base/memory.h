// Memory that keys and values lie in: the host's, or a device's, whose addresses only its own calls may read.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>

namespace blip2rt {

// Copies `tensors` x `heads` runs of `bytes` bytes.
struct BlockCopy {
  struct End {
    char* start;
    size_t head, tensor;  // bytes from one head, and one tensor, to the next; `tensor` is a multiple of `head`
    bool on_host = false;
  };
  End from, to;
  size_t bytes, heads, tensors;
};

class Memory {
 public:
  Memory() = default;
  virtual ~Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  virtual bool on_host() const { return false; }
  virtual void* allocate(size_t bytes) = 0;  // on a device filled with zeros: masked slots are multiplied with 0
  virtual void release(void* address) noexcept = 0;
  // A copy to the host is complete when the call returns; others are once a later run of a graph reads them.
  virtual void copy(const BlockCopy& copy) = 0;
};

class HostMemory final : public Memory {
 public:
  bool on_host() const override { return true; }
  void* allocate(size_t bytes) override { return ::operator new(bytes); }
  void release(void* address) noexcept override { ::operator delete(address); }
  void copy(const BlockCopy& copy) override {
    const BlockCopy::End &from = copy.from, &to = copy.to;
    for (size_t tensor = 0; tensor < copy.tensors; ++tensor) {
      for (size_t head = 0; head < copy.heads; ++head) {
        std::memcpy(to.start + tensor * to.tensor + head * to.head,
                    from.start + tensor * from.tensor + head * from.head, copy.bytes);
      }
    }
  }
};

inline Memory& host_memory() {
  static HostMemory memory;
  return memory;
}

}  // namespace blip2rt
