// Calls of POSIX and of Windows. Nothing else includes their headers, except what asks for the processor's features.
#include "base/system.h"

#include <fcntl.h>
#include <sys/stat.h>
#if defined(_WIN32)
#include <io.h>
#include <process.h>
#include <windows.h>
#else
#include <dlfcn.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <new>
#include <stdexcept>
#include <system_error>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace blip2rt {
namespace {

#if defined(_WIN32)
constexpr const char* kSeparators = "/\\";
using FileState = struct _stat64;

int open_file(const std::string& path) {
  return _wopen(native_path(path).c_str(), _O_RDONLY | _O_BINARY | _O_NOINHERIT);
}
int state_of(int file, FileState* found) { return _fstat64(file, found); }
int state_at(const std::string& path, FileState* found) { return _wstat64(native_path(path).c_str(), found); }
int read_some(int file, char* into, size_t size) {
  constexpr size_t kMost = 1 << 30;
  return _read(file, into, static_cast<unsigned>(size < kMost ? size : kMost));
}
void close_file(int file) { _close(file); }
unsigned type_of(const FileState& found) { return found.st_mode & _S_IFMT; }
const char* map_file(int file, size_t) {
  const auto handle = reinterpret_cast<HANDLE>(_get_osfhandle(file));
  const HANDLE mapping = CreateFileMappingW(handle, nullptr, PAGE_READONLY, 0, 0, nullptr);
  const void* data = mapping == nullptr ? nullptr : MapViewOfFile(mapping, FILE_MAP_READ, 0, 0, 0);
  const DWORD error = GetLastError();
  if (mapping != nullptr) CloseHandle(mapping);  // the view keeps it
  if (data == nullptr) throw std::runtime_error("Windows cannot map it: error " + std::to_string(error));
  return static_cast<const char*>(data);
}
void unmap(char* data, size_t) { UnmapViewOfFile(data); }
void let_go(char* data, size_t size) { VirtualUnlock(data, size); }  // unlocked pages leave the working set
constexpr unsigned kRegular = _S_IFREG, kFolder = _S_IFDIR;
#else
constexpr const char* kSeparators = "/";
using FileState = struct stat;

int open_file(const std::string& path) { return open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK); }
int state_of(int file, FileState* found) { return fstat(file, found); }
int state_at(const std::string& path, FileState* found) { return stat(path.c_str(), found); }
ssize_t read_some(int file, char* into, size_t size) { return ::read(file, into, size); }
void close_file(int file) { close(file); }
unsigned type_of(const FileState& found) { return found.st_mode & S_IFMT; }
const char* map_file(int file, size_t size) {
  void* data = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED && errno == ENOMEM) throw std::bad_alloc();
  if (data == MAP_FAILED) throw std::runtime_error(std::strerror(errno));
  return static_cast<const char*>(data);
}
void unmap(char* data, size_t size) { munmap(data, size); }
void let_go(char* data, size_t size) { madvise(data, size, MADV_DONTNEED); }
constexpr unsigned kRegular = S_IFREG, kFolder = S_IFDIR;
#endif

[[noreturn]] void throw_errno() { throw std::system_error(errno, std::generic_category()); }

FileStatus status_of(const FileState& found) {
  const unsigned type = type_of(found);
  const FileKind kind = type == kRegular ? FileKind::kRegular : type == kFolder ? FileKind::kFolder : FileKind::kOther;
  return {kind, static_cast<uint64_t>(found.st_size), 0};
}

}  // namespace

std::string folder_of(const std::string& path) {
  const size_t end = path.find_last_of(kSeparators);
  return end == std::string::npos ? "" : path.substr(0, end + 1);
}

InputFile::InputFile(const std::string& path) : descriptor_(open_file(path)) {
  FileState found;
  if (descriptor_ < 0) throw_errno();
  if (state_of(descriptor_, &found) != 0) {
    const int error = errno;
    close_file(descriptor_);
    throw std::system_error(error, std::generic_category());
  }
  status_ = status_of(found);
}

InputFile::~InputFile() { close_file(descriptor_); }

std::string InputFile::read() const {
  std::string bytes(static_cast<size_t>(status_.size), '\0');
  size_t done = 0;
  while (done < bytes.size()) {
    const auto count = read_some(descriptor_, &bytes[done], bytes.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw_errno();
    if (count == 0) bytes.resize(done);
    done += static_cast<size_t>(count);
  }
  return bytes;
}

MappedFile::MappedFile(const std::string& path) {
  const InputFile file(path);
  if (file.kind() != FileKind::kRegular) throw std::runtime_error("it is not a regular file");
  const auto size = static_cast<size_t>(file.size());
  if (size > 0) bytes_ = {map_file(file.descriptor(), size), size};
}

MappedFile::~MappedFile() {
  if (!bytes_.empty()) unmap(const_cast<char*>(bytes_.data()), bytes_.size());
}

void MappedFile::release() const {
  if (!bytes_.empty()) let_go(const_cast<char*>(bytes_.data()), bytes_.size());
}

FileStatus file_status(const std::string& path) {
  FileState found;
  return state_at(path, &found) == 0 ? status_of(found) : FileStatus{FileKind::kMissing, 0, errno};
}

#if defined(_WIN32)

PathString native_path(const std::string& path) {
  const int size = static_cast<int>(path.size());
  PathString wide(static_cast<size_t>(MultiByteToWideChar(CP_UTF8, 0, path.data(), size, nullptr, 0)), L'\0');
  MultiByteToWideChar(CP_UTF8, 0, path.data(), size, wide.data(), static_cast<int>(wide.size()));
  return wide;
}

uint64_t regular_file_size(const std::string& path) {
  constexpr DWORD kIrregular = FILE_ATTRIBUTE_DIRECTORY | FILE_ATTRIBUTE_REPARSE_POINT | FILE_ATTRIBUTE_DEVICE;
  WIN32_FILE_ATTRIBUTE_DATA found;
  if (!GetFileAttributesExW(native_path(path).c_str(), GetFileExInfoStandard, &found)) {
    throw std::runtime_error("Windows cannot open it: error " + std::to_string(GetLastError()));
  }
  if ((found.dwFileAttributes & kIrregular) != 0) throw std::runtime_error("it is not a regular file");
  return uint64_t{found.nFileSizeHigh} << 32 | found.nFileSizeLow;
}

void* load_library(const std::string& path) {
  HMODULE library = LoadLibraryExW(native_path(path).c_str(), nullptr, LOAD_WITH_ALTERED_SEARCH_PATH);
  if (library == nullptr) throw std::runtime_error("Windows' error " + std::to_string(GetLastError()));
  return library;
}

std::string own_folder() {
  constexpr DWORD kFlags = GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_UNCHANGED_REFCOUNT;
  HMODULE module = nullptr;
  wchar_t path[32768];
  if (!GetModuleHandleExW(kFlags, reinterpret_cast<const wchar_t*>(&own_folder), &module)) return "";
  const int size = static_cast<int>(GetModuleFileNameW(module, path, static_cast<DWORD>(std::size(path))));
  std::string bytes(static_cast<size_t>(WideCharToMultiByte(CP_UTF8, 0, path, size, nullptr, 0, nullptr, nullptr)),
                    '\0');
  WideCharToMultiByte(CP_UTF8, 0, path, size, bytes.data(), static_cast<int>(bytes.size()), nullptr, nullptr);
  return folder_of(bytes);
}

void* find_symbol(void* library, const char* name) {
  return reinterpret_cast<void*>(GetProcAddress(static_cast<HMODULE>(library), name));
}

void set_default_variable(const char* name, const char* value) {
  if (std::getenv(name) == nullptr) _putenv_s(name, value);
}

bool has_address_space(uint64_t) { return true; }

int process_id() { return _getpid(); }

void sleep_until_exit() {
  for (;;) Sleep(INFINITE);
}

#else

PathString native_path(const std::string& path) { return path; }

uint64_t regular_file_size(const std::string& path) {
  FileState found;
  if (lstat(path.c_str(), &found) != 0) throw std::runtime_error(std::strerror(errno));
  if (type_of(found) != kRegular) throw std::runtime_error("it is not a regular file");
  return static_cast<uint64_t>(found.st_size);
}

void* load_library(const std::string& path) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  return library;
}

std::string own_folder() {
  Dl_info info;
  const bool found = dladdr(reinterpret_cast<const void*>(&own_folder), &info) != 0 && info.dli_fname != nullptr;
  if (found) return folder_of(info.dli_fname);
#if defined(__linux__)
  const auto program = reinterpret_cast<const char*>(getauxval(AT_EXECFN));  // of musl's static programs
  if (program != nullptr) return folder_of(program);
#endif
  return "";
}

void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

void set_default_variable(const char* name, const char* value) { setenv(name, value, 0); }

bool has_address_space(uint64_t bytes) {
  rlimit limit;
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return true;
  void* room = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (room == MAP_FAILED) return false;
  munmap(room, bytes);
  return true;
}

int process_id() { return getpid(); }

void sleep_until_exit() {
  for (;;) pause();
}

#endif

void return_memory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace blip2rt
