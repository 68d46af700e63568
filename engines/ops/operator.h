// What our operators see of a run, whichever runtime runs them.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "base/tensor.h"

namespace blip2rt {

// A reusable buffer of one thread. It grows on demand, so that a token allocates nothing.
class Buffer {
 public:
  template <class T>
  T* get(size_t count) {
    constexpr size_t kLine = static_cast<size_t>(kAlignment);
    const size_t bytes = (product_of(count, sizeof(T)) + kLine - 1) / kLine * kLine;
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(::operator new(bytes, kAlignment));
      size_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(void* memory) const { ::operator delete(memory, kAlignment); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

// A node's inputs and outputs in a run, and the threads of the run.
class OperatorRun {
 public:
  virtual TensorView input(size_t index) const = 0;  // without a type if an optional input is missing
  virtual float* output(size_t index, const int64_t* axes, size_t rank) = 0;
  // Calls work(data, part) for each of `parts` parts, on any threads.
  virtual void run_parts(size_t parts, void (*work)(void* data, size_t part), void* data) = 0;
  // Whether something follows a product in its end. If so, finish() computes it in place, for columns `first` to `last`
  // of all rows of output 0. Products call it when these columns are computed, while they are in the cache.
  virtual bool finishes() const { return false; }
  virtual void finish(size_t first, size_t last) { (void)first, (void)last; }

 protected:
  ~OperatorRun() = default;
};

// A node's attributes. Throws std::runtime_error if one is missing.
class OperatorAttributes {
 public:
  virtual int64_t integer(const char* name) const = 0;
  virtual float number(const char* name) const = 0;

  // Returns an attribute between 1 and `max`. Throws std::runtime_error.
  size_t size(const char* name, int64_t max) const {
    const int64_t size = integer(name);
    if (size < 1 || size > max) throw std::runtime_error(std::string("an operator has an invalid ") + name);
    return static_cast<size_t>(size);
  }

  // Returns an attribute that is an address in this process. The rewriting of graphs checks what is there.
  template <class T>
  const T* address(const char* name) const {
    return reinterpret_cast<const T*>(static_cast<uintptr_t>(integer(name)));
  }

 protected:
  ~OperatorAttributes() = default;
};

// An operator with its attributes. It keeps no state of a run, so any number of threads may share it.
class Operator {
 public:
  virtual ~Operator() = default;
  virtual void compute(OperatorRun& run) const = 0;
  static bool optional(size_t) { return false; }  // whether a run may lack the input of this index
};

// Calls work(first, last) on the run's threads for parts of [0, count) with `part_size` items each. Rethrows the first
// exception after all parts have ended: none may pass through ONNX Runtime.
template <class F>
void parallel_for(OperatorRun& run, size_t count, size_t part_size, const F& work) {
  struct Parts {
    const F* work;
    size_t count, part_size;
    std::atomic_flag failed = ATOMIC_FLAG_INIT;
    std::exception_ptr failure = nullptr;  // the first one
  } parts = {&work, count, part_size};
  const auto one = [](void* data, size_t part) {
    Parts& p = *static_cast<Parts*>(data);
    try {
      (*p.work)(part* p.part_size, std::min(p.count, (part + 1) * p.part_size));
    } catch (...) {
      if (!p.failed.test_and_set()) p.failure = std::current_exception();
    }
  };
  run.run_parts((count + part_size - 1) / part_size, one, &parts);
  if (parts.failure) std::rethrow_exception(parts.failure);
}

}  // namespace blip2rt
