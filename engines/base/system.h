// What the core needs of the operating system, on Linux, macOS and Windows. Paths are UTF-8.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace blip2rt {

#if defined(_WIN32)
using PathString = std::wstring;  // what the system's and ONNX Runtime's functions take
#else
using PathString = std::string;
#endif
using PathCharacter = PathString::value_type;
PathString native_path(const std::string& path);

// Returns the folder of a path with its separator, or nothing for a plain file name.
std::string folder_of(const std::string& path);

// Returns the size of a regular file; a link is none. Throws std::runtime_error with the reason alone.
uint64_t regular_file_size(const std::string& path);

enum class FileKind { kMissing, kRegular, kFolder, kOther };

struct FileStatus {
  FileKind kind = FileKind::kMissing;
  uint64_t size = 0;
  int error = 0;  // errno, if the file could not be looked at

  bool is_missing() const { return error == ENOENT || error == ENOTDIR || error == ELOOP; }
};

// Follows links.
FileStatus file_status(const std::string& path);

// An open file, which may turn out to be no regular one. Opening does not wait for a pipe.
class InputFile {
 public:
  // Throws std::system_error.
  explicit InputFile(const std::string& path);
  ~InputFile();
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  int descriptor() const { return descriptor_; }
  FileKind kind() const { return status_.kind; }
  uint64_t size() const { return status_.size; }

  // Returns at most size() bytes; fewer if the file was truncated. Throws std::system_error.
  std::string read() const;

 private:
  int descriptor_;
  FileStatus status_;
};

// A file mapped for reading, of which the process holds the pages that it has read.
class MappedFile {
 public:
  // Throws std::runtime_error with the reason alone.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  std::string_view bytes() const { return bytes_; }

  // Lets the pages go, from the process's memory but not from the system's cache.
  void release() const;

 private:
  std::string_view bytes_;
};

// Loads a shared library with the libraries beside it. Throws std::runtime_error with the reason alone.
void* load_library(const std::string& path);
// Returns the folder of the program or library that this code is in, with a separator; nothing if it is unknown.
std::string own_folder();
// Returns nullptr if there is no such symbol.
void* find_symbol(void* library, const char* name);

// Sets a variable of the environment, unless the user has set it.
void set_default_variable(const char* name, const char* value);

// Returns whether `ulimit -v` leaves room for this many more bytes.
bool has_address_space(uint64_t bytes);

// Gives freed memory back to the system; glibc keeps it for the process otherwise.
void return_memory();

// Identifies the process; differs in a fork.
int process_id();

// Holds a thread until the process ends.
[[noreturn]] void sleep_until_exit();

}  // namespace blip2rt
