// KvCache on the memory of a GPU, through a stand-in of the CUDA runtime (cudart_stand_in.cpp): rows are copied as on
// the host. Exits with 0 when they are.
#include <cstdio>
#include <cstdlib>
#include <random>

#include "loop/kv_cache.h"

int main(int, char** arguments) {
  using namespace blip2rt;
  const auto memory = open_cuda_memory(arguments[1]);
  std::mt19937 random(static_cast<unsigned>(std::atoi(arguments[2])));
  const auto below = [&random](int end) { return static_cast<int>(random() % static_cast<unsigned>(end)); };
  const CacheShape shape{1 + below(3), 2 + below(4), 1 + below(3), 2 + below(9), 1 + below(8)};
  KvCache host(shape), device(shape, *memory);
  const size_t row = static_cast<size_t>(shape.heads) * static_cast<size_t>(shape.capacity * shape.head_dim);
  for (int buffer = 0; buffer < shape.layers * 2; ++buffer) {
    for (int r = 0; r < shape.rows; ++r) {
      for (size_t i = 0; i < row; ++i)
        host.row_start(buffer, r)[i] = device.row_start(buffer, r)[i] = static_cast<float>(random());
    }
  }
  for (int turn = 0; turn < 20; ++turn) {
    const int from = below(shape.rows), to = below(shape.rows), begin = below(shape.capacity);
    const int end = begin + below(shape.capacity - begin + 1);
    host.copy_row(from, to, begin, end);
    device.copy_row(from, to, begin, end);
    for (int buffer = 0; buffer < shape.layers * 2; ++buffer) {
      for (int r = 0; r < shape.rows; ++r) {
        for (size_t i = 0; i < row; ++i) {
          if (host.row_start(buffer, r)[i] == device.row_start(buffer, r)[i]) continue;
          std::printf("turn %d, buffer %d, row %d, number %zu\n", turn, buffer, r, i);
          return 1;
        }
      }
    }
  }
  try {
    memory->allocate(size_t{1} << 50);
  } catch (const std::runtime_error& error) {
    std::printf("%s\n", error.what());
    return 0;
  }
  return 2;
}
