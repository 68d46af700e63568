// Finds the maps of a folder's files in /proc/self/maps and gives their pages back.
#include "mapped_weights.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <memory>
#endif

namespace blip2rt {

#ifdef __linux__

namespace {

// Long beside the pass itself (a third of a millisecond), short beside what is packed meanwhile (40 MB).
constexpr std::chrono::milliseconds kEvery(50);

std::string real_folder(const std::string& path) {
  std::unique_ptr<char, decltype(&std::free)> real(realpath(path.c_str(), nullptr), &std::free);
  if (!real) return "";
  const std::string resolved(real.get());
  return resolved.substr(0, resolved.rfind('/') + 1);
}

}  // namespace

MappedWeights::MappedWeights(const std::string& graph_path) : folder_(real_folder(graph_path)) {
  if (!folder_.empty()) watcher_ = std::thread([this] { watch(); });
}

MappedWeights::~MappedWeights() {
  if (!watcher_.joinable()) return;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    loaded_ = true;
  }
  wake_.notify_one();
  watcher_.join();
  give_back();
}

void MappedWeights::watch() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!wake_.wait_for(lock, kEvery, [this] { return loaded_; })) give_back();
}

// ONNX Runtime only reads its maps, which are private: a page that is dropped holds what the file holds.
void MappedWeights::give_back() const {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    const size_t name = line.find(folder_);
    if (name == std::string::npos || line.find('/') != name) continue;
    uintptr_t begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR, &begin, &end) != 2) continue;
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

#else

MappedWeights::MappedWeights(const std::string&) {}
MappedWeights::~MappedWeights() = default;
void MappedWeights::watch() {}
void MappedWeights::give_back() const {}

#endif

}  // namespace blip2rt
