// Runs engines/search/kernels.cu on a CPU: the blocks of a grid one after the other, the threads of a block as threads
// with a barrier for __syncthreads.
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

namespace {

struct Index {
  unsigned x, y, z;
};
thread_local Index threadIdx, blockIdx, blockDim;

class Barrier {
 public:
  explicit Barrier(unsigned count) : count_(count), left_(count) {}
  void wait() {
    if (count_ == 1) return;
    std::unique_lock<std::mutex> lock(mutex_);
    const unsigned turn = turn_;
    if (--left_ == 0) {
      left_ = count_;
      ++turn_;
      all_.notify_all();
    } else {
      all_.wait(lock, [&] { return turn != turn_; });
    }
  }

 private:
  std::mutex mutex_;
  std::condition_variable all_;
  unsigned count_, left_, turn_ = 0;
};
Barrier* barrier = nullptr;
unsigned long syncs = 0;  // by the first threads of all blocks

void __syncthreads() {
  if (threadIdx.x == 0) ++syncs;
  barrier->wait();
}

}  // namespace

#define __global__
#define __shared__ static
#include "search/kernels.cu"

namespace {

template <class... Arguments, size_t... I>
void call(void (*kernel)(Arguments...), void** arguments, std::index_sequence<I...>) {
  kernel(*static_cast<Arguments*>(arguments[I])...);
}

template <class... Arguments>
void run(void (*kernel)(Arguments...), Index grid, unsigned threads, void** arguments) {
  Barrier here(threads);
  barrier = &here;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      const auto work = [&](unsigned rank) {
        threadIdx = {rank, 0, 0};
        blockIdx = {x, y, 0};
        blockDim = {threads, 1, 1};
        call(kernel, arguments, std::index_sequence_for<Arguments...>());
      };
      std::vector<std::thread> team;
      for (unsigned rank = 1; rank < threads; ++rank) team.emplace_back(work, rank);
      work(0);
      for (std::thread& thread : team) thread.join();
    }
  }
}

}  // namespace

// Like cuLaunchKernel: arguments[i] points to the i-th argument. Returns false if no kernel has this name.
extern "C" bool launch(const char* name, unsigned grid_x, unsigned grid_y, unsigned threads, void** arguments) {
  const std::string kernel = name;
  const Index grid = {grid_x, grid_y, 1};
  if (kernel == "scatter") return run(scatter, grid, threads, arguments), true;
  if (kernel == "choose") return run(choose, grid, threads, arguments), true;
  if (kernel == "reorder") return run(reorder, grid, threads, arguments), true;
  if (kernel == "spread") return run(spread, grid, threads, arguments), true;
  return false;
}

// Returns the number of __syncthreads since the library was loaded: each pass over a row has some.
extern "C" unsigned long waits() { return syncs; }
