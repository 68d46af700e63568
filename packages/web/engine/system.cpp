// What the core needs of the operating system, in WebAssembly. Files are bytes in its memory that JavaScript wrote
// there and exist once: mapping one takes no memory.
#include "base/system.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace blip2rt {
namespace {

struct Free {
  void operator()(char* bytes) const { std::free(bytes); }
};

struct File {
  std::unique_ptr<char, Free> bytes;
  size_t size;
};

struct Files {
  std::mutex mutex;
  std::map<std::string, File, std::less<>> by_path;
};

Files& files() {
  static auto& all = *new Files;
  return all;
}

std::string as_folder(std::string path) {
  if (path.empty() || path.back() != '/') path += '/';
  return path;
}

// Returns no address if there is no such file.
std::string_view find(const std::string& path) {
  Files& all = files();
  const std::lock_guard lock(all.mutex);
  const auto found = all.by_path.find(path);
  if (found == all.by_path.end()) return {};
  return {found->second.bytes.get(), found->second.size};
}

}  // namespace

PathString native_path(const std::string& path) { return path; }

std::string folder_of(const std::string& path) { return path.substr(0, path.rfind('/') + 1); }

FileStatus file_status(const std::string& path) {
  const std::string_view bytes = find(path);
  if (bytes.data() != nullptr) return {FileKind::kRegular, bytes.size(), 0};
  const std::string folder = as_folder(path);
  Files& all = files();
  const std::lock_guard lock(all.mutex);
  const auto inside = all.by_path.lower_bound(folder);
  const bool exists = inside != all.by_path.end() && inside->first.compare(0, folder.size(), folder) == 0;
  return {exists ? FileKind::kFolder : FileKind::kMissing, 0, exists ? 0 : ENOENT};
}

uint64_t regular_file_size(const std::string& path) {
  const FileStatus found = file_status(path);
  if (found.kind == FileKind::kMissing) throw std::runtime_error(std::strerror(ENOENT));
  if (found.kind != FileKind::kRegular) throw std::runtime_error("it is not a regular file");
  return found.size;
}

// The descriptor is the file's address.
InputFile::InputFile(const std::string& path) : status_(file_status(path)) {
  if (status_.kind == FileKind::kMissing) throw std::system_error(ENOENT, std::generic_category());
  descriptor_ = static_cast<int>(reinterpret_cast<intptr_t>(find(path).data()));
}

InputFile::~InputFile() = default;

std::string InputFile::read() const {
  return {reinterpret_cast<const char*>(static_cast<intptr_t>(descriptor_)), static_cast<size_t>(status_.size)};
}

MappedFile::MappedFile(const std::string& path) : bytes_(find(path)) { regular_file_size(path); }

MappedFile::~MappedFile() = default;

void MappedFile::release() const {}

void* load_library(const std::string&) { throw std::runtime_error("WebAssembly loads no libraries"); }
std::string own_folder() { return ""; }
void* find_symbol(void*, const char*) { return nullptr; }
void set_default_variable(const char*, const char*) {}
bool has_address_space(uint64_t) { return true; }
void return_memory() {}
int process_id() { return 1; }
void sleep_until_exit() {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace blip2rt

using namespace blip2rt;

extern "C" {

// Makes or replaces a file, and returns where JavaScript writes its bytes; null without memory for them.
char* web_file(const char* path, size_t size) {
  Files& all = files();
  const std::lock_guard lock(all.mutex);
  const auto old = all.by_path.find(std::string_view(path));
  if (old != all.by_path.end()) all.by_path.erase(old);
  constexpr size_t kAlignment = 64;
  auto* bytes = static_cast<char*>(std::aligned_alloc(kAlignment, (size / kAlignment + 1) * kAlignment));
  if (bytes != nullptr) all.by_path.emplace(path, File{std::unique_ptr<char, Free>(bytes), size});
  return bytes;
}

// Removes a folder's files. The models that were loaded from it must be free.
void web_remove(const char* folder) {
  const std::string path = as_folder(folder);
  Files& all = files();
  const std::lock_guard lock(all.mutex);
  auto each = all.by_path.lower_bound(path);
  while (each != all.by_path.end() && each->first.compare(0, path.size(), path) == 0) each = all.by_path.erase(each);
}
}
