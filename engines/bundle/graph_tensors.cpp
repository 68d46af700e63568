// Field numbers are those of onnx.proto.
#include "bundle/graph_tensors.h"

#include <stdexcept>

#include "base/tensor.h"
#include "base/utf8.h"
#include "graphs/onnx_graph.h"
#include "graphs/protobuf.h"

namespace blip2rt {
namespace {

using protobuf::Field;
using protobuf::Reader;

constexpr uint32_t kGraph = 7, kInput = 11, kOutput = 12;  // of ModelProto; of GraphProto

TensorSpec read_tensor(std::string_view value) {
  const ValueInfo info(value);
  TensorSpec tensor{std::string(info.name), dtype_name(info.dtype), {}};
  for (const ValueInfo::Axis& axis : info.shape) {
    tensor.shape.push_back(axis.size ? Axis(*axis.size) : Axis(std::string(axis.name)));
  }
  return tensor;
}

bool agrees(const TensorSpec& ours, const TensorSpec& graph) {
  bool same = ours.dtype == graph.dtype && ours.shape.size() == graph.shape.size();
  for (size_t axis = 0; same && axis < ours.shape.size(); ++axis) {
    const int64_t* size = std::get_if<int64_t>(&ours.shape[axis]);
    const int64_t* other = std::get_if<int64_t>(&graph.shape[axis]);
    same = size == nullptr || other == nullptr || *size == *other;
  }
  return same;
}

void compare(Faults& faults, const std::string& graph, const std::vector<TensorSpec>& ours,
             const std::vector<TensorSpec>& others) {
  std::map<std::string_view, const TensorSpec*> found;
  for (const TensorSpec& other : others) found[other.name] = &other;
  for (const TensorSpec& tensor : ours) {
    const auto other = found.find(tensor.name);
    if (other == found.end()) {
      faults.push_back(graph + " has no tensor " + in_quotes(tensor.name));
    } else if (!agrees(tensor, *other->second)) {
      faults.push_back(graph + " has " + in_quotes(tensor.name) + " of " + other->second->dtype + " " +
                       shown_shape(*other->second) + ", not " + tensor.dtype + " " + shown_shape(tensor));
    }
  }
}

}  // namespace

GraphTensors read_graph_tensors(std::string_view model) {
  const std::string_view graph = protobuf::submessage(model, kGraph);
  if (graph.data() == nullptr) throw std::runtime_error("it is no ONNX model");
  GraphTensors tensors;
  Field field;
  for (Reader reader(graph); reader.next(field);) {
    if (field.number == kInput) tensors.inputs.push_back(read_tensor(field.bytes));
    if (field.number == kOutput) tensors.outputs.push_back(read_tensor(field.bytes));
  }
  return tensors;
}

void append_differences(Faults& faults, const Component& component, const GraphTensors& graph) {
  compare(faults, component.graph, component.inputs, graph.inputs);
  compare(faults, component.graph, component.outputs, graph.outputs);
}

}  // namespace blip2rt
