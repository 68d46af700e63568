// Reads and edits ONNX models as bytes, without the onnx package.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/tensor.h"

namespace blip2rt {

// Hashes names with a key of the process, so that nobody can write a graph whose names collide.
struct NameHash {
  size_t operator()(std::string_view name) const;
};
template <class T>
using NameMap = std::unordered_map<std::string_view, T, NameHash>;

// A tensor that a graph declares (ValueInfoProto), as views of its bytes.
struct ValueInfo {
  struct Axis {
    std::optional<int64_t> size;
    std::string_view name;
  };
  std::string_view name;
  DType dtype = DType::kUndefined;
  std::vector<Axis> shape;

  explicit ValueInfo(std::string_view bytes);
};

// A node (NodeProto), as views of the graph's bytes.
struct Node {
  std::vector<std::string_view> inputs, outputs;
  std::string_view name, op_type, domain;
  std::map<std::string_view, int64_t> ints;  // attributes by type
  std::map<std::string_view, float> floats;
  std::map<std::string_view, std::vector<uint64_t>> lists;
  std::map<std::string_view, std::string_view> texts;
  std::map<std::string_view, uint64_t> attribute_types;  // all names -> AttributeProto.AttributeType; 0: a reference
  bool has_graph = false;

  explicit Node(std::string_view bytes);

  // Returns an integer attribute, or `otherwise` if the node has none of this name.
  int64_t number(std::string_view name, int64_t otherwise) const;
  bool has_list(std::string_view name, const std::vector<uint64_t>& list) const;

  // Returns an input, or "" if the node has fewer.
  std::string_view input(size_t index) const { return index < inputs.size() ? inputs[index] : std::string_view(); }

  // Returns whether all attributes are among these names and are integers, floats or lists of integers.
  bool has_only(std::initializer_list<std::string_view> names) const;

  // Returns whether this is the standard ONNX operator `type`, without unknown attributes.
  bool is(std::string_view type) const;

 private:
  void read_attribute(std::string_view bytes);
};

struct Constant {
  DType dtype = DType::kUndefined;
  std::vector<uint64_t> shape;
  std::string_view raw;   // its data; empty if in another file or another field
  std::string_view file;  // that its data is in; empty if in the graph
  uint64_t offset = 0;    // in the file

  bool has_shape(std::initializer_list<uint64_t> sizes) const {
    return std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end());
  }

  // Returns the values if `raw` has exactly `count` of them, otherwise an empty list.
  template <class T>
  std::vector<T> values(size_t count) const {
    std::vector<T> found;
    if (raw.size() != count * sizeof(T)) return found;
    found.resize(count);
    raw.copy(reinterpret_cast<char*>(found.data()), raw.size());
    return found;
  }
};

// A graph (GraphProto), as views of its bytes.
struct Graph {
  NameMap<Constant> constants;
  std::vector<Node> nodes;
  NameMap<size_t> use_counts;  // value -> number of nodes and graph outputs that read it
  NameMap<size_t> producers;   // value -> index of its node in `nodes`
  std::map<std::string_view, DType> inputs;
  std::map<std::string_view, size_t> input_ranks;  // 0 if the graph declares no shape
  std::set<std::string_view> outputs;
  bool has_graph = false;       // some node has a subgraph
  bool has_value_info = false;  // it declares types and shapes of values that its nodes compute

  // Throws std::runtime_error if two values have the same name.
  explicit Graph(std::string_view graph);

  bool has(std::string_view value) const;  // under any role

  // Returns the node that computes input `index` of `reader`, if it has this type, `inputs` inputs and `outputs`
  // outputs, and only `reader` uses its result. Otherwise, or if `reader` is nullptr, returns nullptr.
  const Node* sole_producer(const Node* reader, size_t index, std::string_view op_type, size_t inputs,
                            size_t outputs = 1) const;

  // Returns nullptr if `name` is not a constant of this type.
  const Constant* constant(std::string_view name, DType dtype) const;
};

using IntAttributes = std::vector<std::pair<std::string_view, uint64_t>>;
using FloatAttributes = std::vector<std::pair<std::string_view, float>>;

// Replacements of nodes by their first output: what write_node returned, for any number of nodes.
using NodeChanges = std::map<std::string_view, std::string>;

// Writes a node with the name and outputs of `node`, as a field of the graph.
std::string write_node(const Node& node, std::string_view domain, std::string_view type,
                       const std::vector<std::string_view>& inputs, const IntAttributes& ints,
                       const FloatAttributes& factors = {});

// Writes a graph input: int32 (B), or (B, columns) if `columns` is not 0.
std::string write_input(std::string_view name, uint64_t columns);

// A model (ModelProto), as views of its bytes.
struct OnnxModel {
  std::string_view graph;      // empty if the model has none
  uint64_t opset = 0;          // version of the standard operators
  uint64_t microsoft = 0;      // version of com.microsoft
  bool has_functions = false;  // they may override operators
  bool has_training = false;

  // Throws std::runtime_error if it imports a domain twice.
  explicit OnnxModel(std::string_view model);
};

// Writes `graph` with `changes` to its nodes and without constants that no node reads, and appends `inputs`. `parts` is
// the parsed graph.
std::string apply_changes(std::string_view graph, const Graph& parts, const NodeChanges& changes,
                          const std::vector<std::string>& inputs);

// Writes `model` with another graph, and imports version 1 of `domain`.
std::string replace_graph(std::string_view model, const std::string& graph, std::string_view domain);

}  // namespace blip2rt
