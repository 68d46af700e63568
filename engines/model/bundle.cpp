// Reads bundles, in the words of blip2rt.bundle.
#include "model/bundle.h"

#include <algorithm>

#include "base/sha256.h"
#include "base/system.h"
#include "base/utf8.h"

namespace blip2rt {
namespace {

constexpr const char* kManifest = "blip2rt.json";
constexpr uint64_t kMaxManifestBytes = 4 << 20;

Error model_error(std::string fault) { return {ErrorKind::kModel, std::move(fault)}; }

std::string read_manifest_file(const std::string& folder) {
  const std::string file = folder + "/" + kManifest;
  const FileKind kind = file_status(folder).kind;
  if (kind == FileKind::kMissing) throw model_error("no bundle at " + folder + ": there is no such folder");
  if (kind != FileKind::kFolder) {
    throw model_error(folder + " is a file; a bundle is the folder that holds " + std::string(kManifest));
  }
  if (file_status(file).kind != FileKind::kRegular) {
    throw model_error("no bundle at " + folder + ": the folder has no " + kManifest);
  }
  try {
    return read_regular(file, kMaxManifestBytes);
  } catch (const std::runtime_error& error) {
    throw model_error("cannot read " + file + ": " + error.what());
  }
}

Faults size_faults(const Bundle& bundle) {
  Faults faults;
  for (const auto& [name, entry] : bundle.manifest.files) {
    const FileStatus found = file_status(bundle.file(name));
    if (found.kind != FileKind::kRegular) {
      faults.push_back(name + " is missing");
    } else if (found.size != static_cast<uint64_t>(entry.size)) {
      faults.push_back(name + " has " + std::to_string(found.size) + " bytes instead of " + std::to_string(entry.size));
    }
  }
  return faults;
}

// Whether a manifest matches its own checksum, which is of its bytes with zeros for the digits. One without matches.
bool is_intact(std::string manifest) {
  const std::string key = "\"manifest_sha256\": \"";
  const size_t at = manifest.find(key), digits = at + key.size(), count = 64;
  if (at == std::string::npos || manifest.size() < digits + count || manifest[digits + count] != '"') return true;
  const std::string said = manifest.substr(digits, count);
  manifest.replace(digits, count, count, '0');
  Sha256 hash;
  hash.add(manifest.data(), manifest.size());
  return hash.digits() == said && manifest.find(key, digits) == std::string::npos;
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
  const auto folder_of = [](const std::string& name) { return name.substr(0, name.rfind('/') + 1); };
  const std::string own = folder_of(manifest.components.at(component).graph);
  std::map<std::string, uint64_t> files;
  for (const auto& [name, entry] : manifest.files) {
    if (folder_of(name) == own) files[name.substr(own.size())] = static_cast<uint64_t>(entry.size);
  }
  return files;
}

void Bundle::require(const std::vector<std::string>& components, const std::string& action) const {
  Faults missing;
  for (const std::string& name : components) {
    if (!manifest.has(name)) missing.push_back(name);
  }
  if (missing.empty()) return;
  const bool generative = std::find(kGenerative.begin(), kGenerative.end(), missing[0]) != kGenerative.end();
  throw model_error("bundle '" + manifest.name + "' cannot " + action + ": it lacks " + joined(missing, ", ") +
                    "; export it again with a stage-" + (generative ? "2" : "1") + " checkpoint");
}

Bundle read_bundle(const std::string& folder) {
  Bundle bundle{folder, read_manifest(read_manifest_file(folder), folder + "/" + kManifest)};
  Faults faults = size_faults(bundle);
  if (faults.empty()) return bundle;
  faults.front() = "bundle " + folder + " is not whole: " + faults.front();
  faults.back() += ": copy or export it again";
  throw Error(ErrorKind::kModel, std::move(faults));
}

void verify(const Bundle& bundle) {
  Faults altered;
  try {
    if (!is_intact(read_regular(bundle.file(kManifest), kMaxManifestBytes))) altered.push_back(kManifest);
    for (const auto& [name, entry] : bundle.manifest.files) {
      Sha256 hash;
      const MappedFile file(bundle.file(name));
      hash.add(file.bytes().data(), file.bytes().size());
      if (hash.digits() != entry.sha256) altered.push_back(name);
    }
  } catch (const std::runtime_error& error) {
    throw model_error("cannot read a file of " + bundle.folder + ": " + error.what());
  }
  if (altered.empty()) return;
  throw model_error("bundle " + bundle.folder + " is altered: the sha256 of " + joined(altered, ", ") +
                    " differs from the manifest's: copy or export it again");
}

}  // namespace blip2rt
