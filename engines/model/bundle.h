// A bundle on disk: its manifest, and the sizes and hashes of its files. Opens no graph.
#pragma once

#include <cstdint>
#include <string>

#include "graphs/graph_file.h"
#include "model/manifest.h"

namespace blip2rt {

struct Bundle {
  std::string folder;
  Manifest manifest;

  std::string file(const std::string& name) const { return folder + "/" + name; }
  std::string graph(const std::string& component) const { return file(manifest.components.at(component).graph); }
  uint64_t bytes() const;  // of all files except the manifest

  // The files that a component's graph may read: those of its folder in the manifest.
  AllowedFiles readable_files(const std::string& component) const;

  // Throws Error if the bundle lacks one of the components, which `action` needs.
  void require(const std::vector<std::string>& components, const std::string& action) const;
};

inline const std::vector<std::string> kGenerative = {"qformer", "embed", "llm"};
inline const std::vector<std::string> kRetrieval = {"image_embed", "text_embed", "itm"};

// Reads and checks a bundle's manifest and the sizes of its files. Throws Error with all missing or changed files.
Bundle read_bundle(const std::string& folder);

// Compares the sha256 of every file, and of the manifest if it has a checksum. Throws Error with every altered file.
void verify(const Bundle& bundle);

// Returns the content of a regular file of at most `most` bytes. Throws std::runtime_error with the reason.
std::string read_regular(const std::string& path, uint64_t most);

}  // namespace blip2rt
