// Reads and changes ONNX models in the form of bytes: the core's one reader of them. Knows onnx.proto; nothing about
// what operators mean.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ort/ort_api.h"

namespace blip2rt {

// A node, as views of the graph's bytes.
struct Node {
  std::vector<std::string_view> inputs, outputs;
  std::string_view name, op_type, domain;
  std::map<std::string_view, int64_t> numbers;  // attributes, by their types
  std::map<std::string_view, float> floats;
  std::map<std::string_view, std::vector<uint64_t>> lists;
  std::vector<std::string_view> others;  // attributes of other types
  bool has_graph = false;

  explicit Node(std::string_view bytes);

  // An attribute, or `otherwise` where the node has none of that name.
  int64_t number(std::string_view name, int64_t otherwise) const;
  bool has_list(std::string_view name, const std::vector<uint64_t>& list) const;

  // An input, or "" where the node has none of that number.
  std::string_view input(size_t index) const { return index < inputs.size() ? inputs[index] : std::string_view(); }

  // Returns whether every attribute has one of these names, and is a number, a float or a list of numbers.
  bool has_only(std::initializer_list<std::string_view> names) const;

  // Returns whether this is such an operator of ONNX's own, with no attribute that it does not have.
  bool is(std::string_view type) const;

 private:
  void read_attribute(std::string_view bytes);

  std::set<std::string_view> attributes_;  // names
};

struct Constant {
  DType dtype = DType::kUndefined;
  std::vector<uint64_t> shape;
  std::string_view raw;  // its numbers; empty where they lie in another file, or in another field

  bool has_shape(std::initializer_list<uint64_t> sizes) const {
    return std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end());
  }

  // Returns the numbers where `raw` holds exactly `count` of them, else an empty list.
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
  std::map<std::string_view, Constant> constants;
  std::vector<Node> nodes;
  std::map<std::string_view, size_t> use_counts;  // value -> how many nodes and outputs of the graph read it
  std::map<std::string_view, size_t> producers;   // value -> place of its node among `nodes`
  std::map<std::string_view, DType> inputs;       // of the graph
  std::set<std::string_view> outputs;
  bool has_graph = false;  // a node has a subgraph

  // Throws std::runtime_error where two values have one name.
  explicit Graph(std::string_view graph);

  bool has(std::string_view value) const;  // anything of this name

  // Returns the node that makes input `index` of `reader`, where it has this type, `inputs` inputs and `outputs`
  // outputs, and nobody else reads what it makes. Returns nullptr otherwise, and where `reader` is nullptr.
  const Node* sole_producer(const Node* reader, size_t index, std::string_view op_type, size_t inputs,
                            size_t outputs = 1) const;

  // Returns nullptr where `name` is no constant, or one of another type.
  const Constant* constant(std::string_view name, DType dtype) const;
};

using IntAttributes = std::vector<std::pair<std::string_view, uint64_t>>;
using FloatAttributes = std::vector<std::pair<std::string_view, float>>;

// What becomes of nodes, by their first output: other bytes, or none where the node goes.
using NodeChanges = std::map<std::string_view, std::string>;

// Writes a node with the name and outputs of `node`.
std::string write_node(const Node& node, std::string_view domain, std::string_view type,
                       const std::vector<std::string_view>& inputs, const IntAttributes& numbers,
                       const FloatAttributes& factors = {});

// Writes an input of a graph: int32 (B), or (B, columns) where `columns` is not 0.
std::string write_input(std::string_view name, uint64_t columns);

// A model (ModelProto), as views of its bytes.
struct Model {
  std::string_view graph;      // empty where the model has none
  uint64_t opset = 0;          // of ONNX's own operators
  uint64_t microsoft = 0;      // of ONNX Runtime's
  bool has_functions = false;  // which may stand in for operators

  explicit Model(std::string_view model);
};

// Writes `graph` with `changes` to its nodes and more `inputs` behind its own. `parts` are the graph's.
std::string apply_changes(std::string_view graph, const Graph& parts, const NodeChanges& changes,
                          const std::vector<std::string>& inputs);

// Writes `model` with another graph, and imports version 1 of `domain`.
std::string replace_graph(std::string_view model, const std::string& graph, std::string_view domain);

}  // namespace blip2rt
