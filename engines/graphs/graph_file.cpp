// Reads graph files and enforces the rules for external data.
#include "graphs/graph_file.h"

#include <system_error>
#include <tuple>
#include <vector>

#include "base/system.h"
#include "base/utf8.h"
#include "graphs/onnx_graph.h"
#include "graphs/onnx_schema.h"
#include "graphs/operator_checks.h"
#include "graphs/protobuf.h"
#include "ops/domain.h"

namespace blip2rt {
namespace {

constexpr uint64_t kMaxBytes = INT32_MAX;  // protobuf's limit

enum TensorField : uint32_t { kDims = 1, kDataType = 2, kName = 8, kExternal = 13, kLocation = 14 };
constexpr uint32_t kInlineData[] = {4, 5, 6, 7, 9, 10, 11};
enum EntryField : uint32_t { kKey = 1, kValue = 2 };

// The location of a tensor's data in another file. Null views: the graph has no such entry.
struct ExternalData {
  std::string_view location, offset, length, checksum;
};

ExternalData read_external_data(const std::vector<std::string_view>& entries) {
  ExternalData data;
  for (std::string_view entry : entries) {
    std::string_view key, value;
    protobuf::Field field;
    for (protobuf::Reader reader(entry); reader.next(field);) {
      if (field.number == kKey) key = field.bytes;
      if (field.number == kValue) value = field.bytes;
    }
    std::string_view* into = key == "location"   ? &data.location
                             : key == "offset"   ? &data.offset
                             : key == "length"   ? &data.length
                             : key == "checksum" ? &data.checksum
                                                 : nullptr;
    if (into == nullptr) throw std::runtime_error("external data has the unknown entry " + quoted(key));
    if (into->data() != nullptr) throw std::runtime_error("external data has the entry " + quoted(key) + " twice");
    *into = value.data() == nullptr ? std::string_view("", 0) : value;
  }
  return data;
}

// Parses a decimal number; returns `otherwise` if the entry is missing.
uint64_t parse_number(std::string_view text, uint64_t otherwise, const char* what) {
  constexpr size_t kMaxDigits = 18;  // they always fit into 64 bits
  if (text.data() == nullptr) return otherwise;
  uint64_t number = 0;
  for (char digit : text) {
    if (digit < '0' || digit > '9') number = UINT64_MAX;
    if (number != UINT64_MAX) number = number * 10 + static_cast<uint64_t>(digit - '0');
  }
  if (text.empty() || text.size() > kMaxDigits || number == UINT64_MAX) {
    throw std::runtime_error(std::string("external data has the ") + what + " " + quoted(text));
  }
  return number;
}

// The files next to a graph that its tensors are in.
struct ExternalFiles {
  const std::string& folder;
  const AllowedFiles& allowed;
  std::map<std::string, uint64_t> sizes = {};  // of those already seen
};

// Returns the size of a file next to the graph. Throws if it is no regular file, or not allowed.
uint64_t external_file_size(const std::string& name, ExternalFiles& files) {
  uint64_t& size = files.sizes[name];
  if (size > 0) return size;
  try {
    size = regular_file_size(files.folder + name);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("external data is in " + quoted(name) + ": " + error.what());
  }
  if (!files.allowed) return size;
  const auto listed = files.allowed->find(name);
  if (listed == files.allowed->end()) {
    throw std::runtime_error("external data is in " + quoted(name) + ", which the manifest does not list");
  }
  if (listed->second != size) {
    throw std::runtime_error("external data is in " + quoted(name) + ", which has " + std::to_string(size) +
                             " bytes instead of " + std::to_string(listed->second));
  }
  return size;
}

void check_external_data(const ExternalData& data, std::optional<uint64_t> bytes, ExternalFiles& files) {
  const std::string name(data.location);
  const bool plain = !name.empty() && name != "." && name != ".." &&
                     name.find_first_of(std::string("/\\:*\0", 5)) == std::string::npos;
  if (!plain) throw std::runtime_error("external data is in " + quoted(name) + ", which is not a plain file name");
  if (!bytes) throw std::runtime_error("external data has an unsupported type or size");
  const uint64_t size = external_file_size(name, files);
  const uint64_t offset = parse_number(data.offset, 0, "offset"), length = parse_number(data.length, *bytes, "length");
  if (length != *bytes) {
    throw std::runtime_error("external data has " + std::to_string(length) + " bytes for a tensor of " +
                             std::to_string(*bytes));
  }
  if (offset > size || length > size - offset) {
    throw std::runtime_error("external data extends past the end of " + quoted(name));
  }
}

void check_tensor(std::string_view bytes, ExternalFiles& files) {
  std::vector<uint64_t> shape;
  std::vector<std::string_view> entries;
  std::string_view name;
  uint64_t dtype = 0, location = 0;
  bool has_data = false;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    if (field.number == kDims && field.wire == protobuf::kVarint) shape.push_back(field.value);
    if (field.number == kDims && field.wire == protobuf::kBytes) protobuf::read_packed(field.bytes, shape);
    if (field.number == kDataType) dtype = field.value;
    if (field.number == kName) name = field.bytes;
    if (field.number == kExternal) entries.push_back(field.bytes);
    if (field.number == kLocation) location = field.value;
    for (uint32_t data : kInlineData) has_data = has_data || field.number == data;
  }
  try {
    uint64_t count = 1;
    bool fits = true;
    for (uint64_t axis : shape) {
      fits = fits && axis <= INT64_MAX && !__builtin_mul_overflow(count, axis == 0 ? 1 : axis, &count);
    }
    if (!fits || count > INT64_MAX / 16) throw std::runtime_error("its shape is negative or too large");
    if (location > 1) throw std::runtime_error("data_location is " + std::to_string(location));
    if (location == 0 && entries.empty()) return;
    if (has_data) throw std::runtime_error("its data is both in the graph and in a file");
    check_external_data(read_external_data(entries), tensor_bytes(shape, dtype), files);
  } catch (const std::runtime_error& error) {
    throw std::runtime_error("tensor " + quoted(name) + ": " + error.what());
  }
}

// Reads a regular file. Rejects FIFOs and devices, which could block.
std::string read_file(const std::string& path) {
  try {
    const InputFile file(path);
    if (file.kind() != FileKind::kRegular) throw std::runtime_error("it is not a regular file");
    if (file.size() > kMaxBytes) throw std::runtime_error("it is larger than 2 GB");
    std::string bytes = file.read();
    if (bytes.size() < file.size()) throw std::runtime_error("it was truncated while being read");
    return bytes;
  } catch (const std::system_error& error) {
    throw std::runtime_error(error.code().message());
  }
}

}  // namespace

std::optional<uint64_t> tensor_bytes(const std::vector<uint64_t>& shape, uint64_t dtype) {
  // Bits of each TensorProto.DataType; 0: not allowed in a file.
  constexpr uint8_t kBits[] = {0,  32,  8,  8, 16, 16, 32, 64, 0, 8, 16, 64, 32, 64,
                               64, 128, 16, 8, 8,  8,  8,  4,  4, 4, 8,  2,  2};
  if (dtype >= sizeof kBits || kBits[dtype] == 0) return std::nullopt;
  uint64_t count = 1, bits = 0;
  for (uint64_t axis : shape) {
    if (__builtin_mul_overflow(count, axis, &count)) return std::nullopt;
  }
  if (__builtin_mul_overflow(count, kBits[dtype], &bits) || bits > UINT64_MAX - 7) return std::nullopt;
  return (bits + 7) / 8;
}

void check_model(std::string_view model, const std::string& folder, const AllowedFiles& files, OperatorRules rules) {
  const ModelContents found = scan_model(model);
  for (std::string_view domain : found.domains) {
    if (domain == kDomain) throw std::runtime_error("it uses operators of the domain " + quoted(kDomain));
  }
  ExternalFiles external{folder, files};
  for (std::string_view tensor : found.tensors) check_tensor(tensor, external);
  if (rules != OperatorRules::kTrusted) check_operators(model, found, rules == OperatorRules::kEveryEngine);
}

std::string read_graph(const std::string& path, const AllowedFiles& files, OperatorRules rules) {
  try {
    std::string bytes = read_file(path);
    check_model(bytes, folder_of(path), files, rules);
    return bytes;
  } catch (const OperatorError& error) {
    throw GraphError(path, error.what(),
                     "if the graph is your own, load it with trusted_graphs=True or --trusted-graphs");
  } catch (const std::runtime_error& error) {
    throw GraphError(path, error.what());
  }
}

const void* Weights::address(const Constant& constant) {
  const auto bytes = tensor_bytes(constant.shape, static_cast<uint64_t>(constant.dtype));
  std::string_view values = constant.raw;
  if (!bytes || (constant.file.empty() && values.size() != *bytes)) return nullptr;
  if (!constant.file.empty()) {
    auto file = files_.find(constant.file);
    if (file == files_.end()) {
      const std::string name(constant.file);
      file =
          files_.emplace(std::piecewise_construct, std::forward_as_tuple(name), std::forward_as_tuple(folder_ + name))
              .first;
    }
    const std::string_view whole = file->second.bytes();
    if (constant.offset > whole.size() || *bytes > whole.size() - constant.offset) {
      throw std::runtime_error("external data extends past the end of " + quoted(constant.file));
    }
    values = whole.substr(constant.offset, *bytes);
    if (reinterpret_cast<uintptr_t>(values.data()) % alignof(float) == 0) return values.data();
  }
  return copies_.emplace_back(values).data();
}

void Weights::release() const {
  for (const auto& [name, file] : files_) file.release();
}

}  // namespace blip2rt
