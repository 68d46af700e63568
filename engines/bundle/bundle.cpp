// Reads bundles and verifies their files.
#include "bundle/bundle.h"

#include <algorithm>
#include <system_error>
#include <utility>

#include "base/sha256.h"
#include "base/system.h"
#include "base/utf8.h"
#include "bundle/graph_tensors.h"

namespace blip2rt {
namespace {

constexpr const char* kManifest = "blip2rt.json";
constexpr uint64_t kMaxManifestBytes = 4 << 20;
constexpr size_t kPiece = 1 << 20;  // bytes between two reports of progress

Error model_error(std::string fault) { return {ErrorKind::kModel, std::move(fault)}; }

Error unreadable(const std::string& file, const std::runtime_error& error) {
  return model_error("cannot read " + file + ": " + error.what());
}

// Whether a manifest matches its own checksum, which is of its bytes with zeros for the digits. One without matches.
bool is_intact(std::string manifest) {
  const std::string key = "\"manifest_sha256\": \"";
  const size_t at = manifest.find(key), digits = at + key.size(), count = 64;
  if (at == std::string::npos || manifest.size() <= digits + count || manifest[digits + count] != '"') return true;
  const std::string said = manifest.substr(digits, count);
  if (said.find_first_not_of("0123456789abcdef") != std::string::npos) return true;
  manifest.replace(digits, count, count, '0');
  Sha256 hash;
  hash.add(manifest.data(), manifest.size());
  return hash.digits() == said && manifest.find(key, digits) == std::string::npos;
}

std::string sha256_of(const std::string& path, const std::function<void(uint64_t)>& progress) {
  Sha256 hash;
  const MappedFile file(path);
  for (std::string_view rest = file.bytes(); !rest.empty();) {
    const size_t size = std::min(rest.size(), kPiece);
    hash.add(rest.data(), size);
    rest.remove_prefix(size);
    if (progress) progress(size);
  }
  return hash.digits();
}

void throw_faults(Faults faults, const std::string& what, const std::string& fix) {
  if (faults.empty()) return;
  faults.front() = what + ": " + faults.front();
  faults.back() += ": " + fix;
  throw Error(ErrorKind::kModel, std::move(faults));
}

}  // namespace

std::string read_regular(const std::string& path, uint64_t most) {
  const InputFile file(path);
  if (file.kind() == FileKind::kFolder) throw std::runtime_error("Is a directory");
  if (file.kind() != FileKind::kRegular) throw std::runtime_error("it is a pipe or a device");
  if (file.size() > most) throw std::runtime_error("it has more than " + with_commas(most) + " bytes");
  return file.read();
}

uint64_t Bundle::bytes() const {
  uint64_t sum = 0;
  for (const auto& [name, entry] : manifest.files) sum += static_cast<uint64_t>(entry.size);
  return sum;
}

AllowedFiles Bundle::readable_files(const std::string& component) const {
  return blip2rt::readable_files(manifest.components.at(component).graph, manifest.files);
}

std::map<std::string, std::vector<int64_t>> Bundle::output_shapes(const std::string& component) const {
  std::map<std::string, std::vector<int64_t>> shapes;
  for (const TensorSpec& tensor : manifest.components.at(component).outputs) {
    std::vector<int64_t>& shape = shapes[tensor.name];
    for (const Axis& axis : tensor.shape) {
      const int64_t* size = std::get_if<int64_t>(&axis);
      shape.push_back(size == nullptr ? -1 : *size);
    }
  }
  return shapes;
}

std::map<std::string, uint64_t> readable_files(const std::string& graph,
                                               const std::map<std::string, FileEntry>& files) {
  const auto folder_of = [](const std::string& name) { return name.substr(0, name.rfind('/') + 1); };
  const std::string own = folder_of(graph);
  std::map<std::string, uint64_t> readable;
  for (const auto& [name, entry] : files) {
    if (folder_of(name) == own) readable[name.substr(own.size())] = static_cast<uint64_t>(entry.size);
  }
  return readable;
}

void Bundle::require(const std::vector<std::string>& components, const std::string& action) const {
  Faults missing;
  for (const std::string& name : components) {
    if (!manifest.has(name)) missing.push_back(name);
  }
  if (missing.empty()) return;
  const bool generative = std::find(kGenerative.begin(), kGenerative.end(), missing[0]) != kGenerative.end();
  throw Error(ErrorKind::kCapability, "bundle '" + manifest.name + "' cannot " + action + ": it lacks " +
                                          joined(missing, ", ") + "; export it again with a stage-" +
                                          (generative ? "2" : "1") + " checkpoint");
}

std::string manifest_bytes(const std::string& folder) {
  const std::string file = folder + "/" + kManifest;
  const FileStatus found = file_status(folder), manifest = file_status(file);
  const std::string none = "no bundle at " + folder + ": ";
  if (found.kind == FileKind::kRegular) {
    throw model_error(folder + " is a file; a bundle is the folder that holds " + kManifest);
  }
  if (found.is_missing() || folder.find('\0') != std::string::npos) throw model_error(none + "there is no such folder");
  if (manifest.is_missing() || (manifest.error == 0 && manifest.kind != FileKind::kRegular)) {
    throw model_error(none + "the folder has no " + kManifest);
  }
  try {
    return read_regular(file, kMaxManifestBytes);
  } catch (const std::runtime_error& error) {
    throw unreadable(file, error);
  }
}

Bundle parse_bundle(const std::string& folder, const std::string& manifest) {
  return {folder, read_manifest(manifest, folder + "/" + kManifest)};
}

void check_files(const Bundle& bundle) {
  Faults faults;
  for (const auto& [name, entry] : bundle.manifest.files) {
    const FileStatus found = file_status(bundle.file(name));
    if (found.error != 0 && !found.is_missing()) {
      faults.push_back(name + " cannot be read: " + std::generic_category().message(found.error));
    } else if (found.kind != FileKind::kRegular) {
      faults.push_back(name + " is missing");
    } else if (found.size != static_cast<uint64_t>(entry.size)) {
      faults.push_back(name + " has " + std::to_string(found.size) + " bytes instead of " + std::to_string(entry.size));
    }
  }
  throw_faults(std::move(faults), "bundle " + bundle.folder + " is not whole", "copy or export it again");
}

void check_tensors(const Bundle& bundle) {
  Faults faults;
  for (const auto& [name, component] : bundle.manifest.components) {
    try {
      const MappedFile file(bundle.graph(name));
      append_differences(faults, component, read_graph_tensors(file.bytes()));
    } catch (const std::runtime_error& error) {
      faults.push_back(component.graph + ": " + error.what());
    }
  }
  throw_faults(std::move(faults), "the graphs of bundle " + bundle.folder + " are not those of its manifest",
               "copy or export it again");
}

void check_graphs(const Bundle& bundle, bool trusted) {
  const OperatorRules own = bundle.manifest.target == "ort" ? OperatorRules::kOnnxRuntime : OperatorRules::kEveryEngine;
  Faults faults;
  for (const auto& [name, component] : bundle.manifest.components) {
    try {
      read_graph(bundle.graph(name), bundle.readable_files(name), trusted ? OperatorRules::kTrusted : own);
    } catch (const GraphError& error) {
      faults.emplace_back(error.what());
    }
  }
  if (!faults.empty()) throw Error(ErrorKind::kModel, std::move(faults));
  check_tensors(bundle);
}

void verify(const Bundle& bundle, const std::function<void(uint64_t)>& progress) {
  Faults altered;
  std::string file = bundle.file(kManifest);
  try {
    if (!is_intact(read_regular(file, kMaxManifestBytes))) altered.push_back(kManifest);
    for (const auto& [name, entry] : bundle.manifest.files) {
      file = bundle.file(name);
      if (sha256_of(file, progress) != entry.sha256) altered.push_back(name);
    }
  } catch (const std::runtime_error& error) {
    throw unreadable(file, error);
  }
  if (altered.empty()) return;
  throw model_error("bundle " + bundle.folder + " is altered: the sha256 of " + joined(altered, ", ") +
                    " differs from the manifest's: copy or export it again");
}

}  // namespace blip2rt
