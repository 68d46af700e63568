// An ONNX graph's nodes and constants as its bytes have them, and what is written in their place. Knows onnx.proto;
// nothing about what operators mean.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ort/ort_api.h"

namespace blip2rt {

// Field numbers of onnx.proto.
enum Model : uint32_t { kGraph = 7, kOpsetImport = 8 };
enum Graph : uint32_t { kNode = 1, kInitializer = 5, kGraphInput = 11, kGraphOutput = 12 };
enum Opset : uint32_t { kOpsetDomain = 1, kOpsetVersion = 2 };

struct Node {
  std::vector<std::string_view> inputs, outputs;
  std::string_view name, op_type, domain;
  std::map<std::string_view, int64_t> numbers;  // attributes
  std::map<std::string_view, float> floats;
  std::map<std::string_view, std::vector<uint64_t>> lists;
  bool has_graph = false;

  explicit Node(std::string_view bytes);

  // An attribute, or what it is where it is not there.
  int64_t number(std::string_view name, int64_t otherwise) const;
  bool has_list(std::string_view name, const std::vector<uint64_t>& list) const;
};

struct Constant {
  DType dtype = DType::kUndefined;
  std::vector<uint64_t> shape;
  std::string_view raw;  // its numbers; empty where they lie in another file, or otherwise

  // The numbers, where there are so many and they lie here; else empty.
  template <class T>
  std::vector<T> values(size_t count) const {
    std::vector<T> found;
    if (raw.size() != count * sizeof(T)) return found;
    found.resize(count);
    raw.copy(reinterpret_cast<char*>(found.data()), raw.size());
    return found;
  }
};

// Constants by name, nodes, and how often a name is used.
struct Parts {
  std::map<std::string_view, Constant> constants;
  std::vector<Node> nodes;
  std::map<std::string_view, size_t> uses, made_by;  // made_by: the node's place among `nodes`
  bool has_graph = false;

  explicit Parts(std::string_view graph);

  // The node of this type with `inputs` inputs that makes what a node reads as its input `index` and nobody else reads;
  // nullptr where there is none, or the node is nullptr.
  const Node* maker(const Node* reader, size_t index, std::string_view op_type, size_t inputs) const;

  // nullptr where it is none, or of another type.
  const Constant* constant(std::string_view name, DType dtype) const;
};

using Numbers = std::vector<std::pair<std::string_view, uint64_t>>;
using Factors = std::vector<std::pair<std::string_view, float>>;

// A node with a name and outputs of `node`, and what else is given.
std::string written_node(const Node& node, std::string_view domain, std::string_view type,
                         const std::vector<std::string_view>& inputs, const Numbers& numbers,
                         const Factors& factors = {});

// A graph's input of int32: (B), or (B, columns).
std::string written_input(std::string_view name, uint64_t columns);

}  // namespace blip2rt
