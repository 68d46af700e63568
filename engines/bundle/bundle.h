// A bundle on disk: its manifest, its files, and the inputs and outputs of its graphs. Runs no graph.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "bundle/manifest.h"
#include "graphs/graph_file.h"

namespace blip2rt {

struct Bundle {
  std::string folder;
  Manifest manifest;

  std::string file(const std::string& name) const { return folder + "/" + name; }
  std::string graph(const std::string& component) const { return file(manifest.components.at(component).graph); }
  uint64_t bytes() const;  // of all files except the manifest

  AllowedFiles readable_files(const std::string& component) const;

  // The shapes of a component's outputs, -1 for a free axis.
  std::map<std::string, std::vector<int64_t>> output_shapes(const std::string& component) const;

  // Throws Error if the bundle lacks one of the components, which `action` needs.
  void require(const std::vector<std::string>& components, const std::string& action) const;
};

// The files of a bundle, with their sizes, that a graph may read: those of its folder.
std::map<std::string, uint64_t> readable_files(const std::string& graph, const std::map<std::string, FileEntry>& files);

// The bytes of a folder's blip2rt.json. Throws Error.
std::string manifest_bytes(const std::string& folder);

// A bundle of a manifest's bytes; no file is opened. Throws Error with every fault.
Bundle parse_bundle(const std::string& folder, const std::string& manifest);

// Throw Error with all missing or changed files, and with all graphs whose inputs and outputs differ from the
// manifest's.
void check_files(const Bundle& bundle);
void check_tensors(const Bundle& bundle);

// Throws Error with all graphs that opening them would reject. trusted: allow operators that exports do not write.
void check_graphs(const Bundle& bundle, bool trusted);

// Compares the sha256 of every file, and of the manifest if it has a checksum. Calls progress(bytes) after each piece
// of a file. Throws Error with every altered file.
void verify(const Bundle& bundle, const std::function<void(uint64_t)>& progress = {});

// Returns the content of a regular file of at most `most` bytes. Throws std::runtime_error with the reason.
std::string read_regular(const std::string& path, uint64_t most);

}  // namespace blip2rt
