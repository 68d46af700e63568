// Our int4 product inside ONNX Runtime: its threads, its tensors, our arithmetic.
#include "matmul_op.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "int4_matmul.h"
#include "protobuf.h"

namespace blip2rt {
namespace {

constexpr char kDomain[] = "blip2rt", kName[] = "MatMulInt4";
enum Input : size_t { kX, kCodes, kScales, kZeroPoints, kInputs };

// Memory of one thread, grown when needed and kept: a token allocates nothing.
class Buffer {
 public:
  template <class T>
  T* get(size_t count) {
    constexpr size_t kAlignment = 64;
    const size_t bytes = (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    if (bytes > size_) {
      memory_.reset();
      memory_.reset(std::aligned_alloc(kAlignment, bytes));
      size_ = memory_ == nullptr ? 0 : bytes;
      if (memory_ == nullptr) throw std::bad_alloc();
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

struct Work {
  const Int4Kernel* kernel;
  const Int4Matrix* matrix;
  const Int4Input* input;
  float* out;
  size_t tiles, tiles_at_once;
};

void do_part(void* data, size_t part) {
  thread_local Buffer scratch;
  const Work& work = *static_cast<const Work*>(data);
  const size_t first = part * work.tiles_at_once, last = std::min(work.tiles, first + work.tiles_at_once);
  work.kernel->multiply(*work.matrix, *work.input, work.out, first, last,
                        scratch.get<uint8_t>(work.kernel->scratch_size(*work.matrix)));
}

struct Kernel {
  int64_t n = 0, k = 0, block = 0;

  void compute(OrtKernelContext* context) const {
    const OrtValue* inputs[kInputs];
    void* data[kInputs];
    for (size_t i = 0; i < kInputs; ++i) {
      check(ort().KernelContext_GetInput(context, i, &inputs[i]));
      check(ort().GetTensorMutableData(const_cast<OrtValue*>(inputs[i]), &data[i]));
    }
    Shape shape(inputs[kX]);
    if (shape.rank == 0 || shape.axes[shape.rank - 1] != k)
      throw std::runtime_error("MatMulInt4: wrong width of input");
    size_t rows = 1;
    for (size_t i = 0; i + 1 < shape.rank; ++i) rows *= static_cast<size_t>(shape.axes[i]);
    shape.axes[shape.rank - 1] = n;
    OrtValue* output = nullptr;
    void* out = nullptr;
    check(ort().KernelContext_GetOutput(context, 0, shape.axes, shape.rank, &output));
    check(ort().GetTensorMutableData(output, &out));
    const Int4Matrix matrix = {static_cast<size_t>(n),
                               static_cast<size_t>(k),
                               static_cast<size_t>(block),
                               static_cast<const uint8_t*>(data[kCodes]),
                               static_cast<const uint16_t*>(data[kScales]),
                               static_cast<const uint8_t*>(data[kZeroPoints])};
    multiply(context, matrix, static_cast<const float*>(data[kX]), rows, static_cast<float*>(out));
  }

 private:
  // No vector: a token allocates nothing.
  struct Shape {
    static constexpr size_t kMost = 8;
    int64_t axes[kMost];
    size_t rank = 0;

    explicit Shape(const OrtValue* value) {
      OrtTensorTypeAndShapeInfo* raw = nullptr;
      check(ort().GetTensorTypeAndShape(value, &raw));
      TensorTypeAndShapeInfo info(raw);
      check(ort().GetDimensionsCount(raw, &rank));
      if (rank > kMost) throw std::runtime_error("MatMulInt4: more than 8 axes");
      check(ort().GetDimensions(raw, axes, rank));
    }
  };

  static void multiply(OrtKernelContext* context, const Int4Matrix& matrix, const float* x, size_t rows, float* out) {
    thread_local Buffer values, scales;
    const size_t blocks = rows * matrix.blocks();
    float* of_blocks = scales.get<float>(2 * blocks);
    const Int4Input input = {rows, values.get<int8_t>(blocks * matrix.block), of_blocks, of_blocks + blocks};
    const Int4Kernel* kernel = int4_kernel();
    for (size_t row = 0; row < rows; ++row) kernel->quantize(x, row, matrix, input);
    // Parts of about 64 KiB of weights: long enough to be worth a thread, short enough to keep all busy to the end.
    constexpr size_t kPart = 64 * 1024;
    const size_t tile_bytes = kernel->tile * matrix.blocks() * matrix.block / 2;
    const size_t tiles = (matrix.n + kernel->tile - 1) / kernel->tile;
    const size_t at_once = std::max<size_t>(1, kPart / std::max<size_t>(1, tile_bytes));
    Work work = {kernel, &matrix, &input, out, tiles, at_once};
    check(ort().KernelContext_ParallelFor(context, do_part, (tiles + at_once - 1) / at_once, 0, &work));
  }
};

OrtStatus* guarded(void (*work)(void*, void*), void* a, void* b) {
  constexpr int kFail = 1;
  try {
    work(a, b);
    return nullptr;
  } catch (const std::exception& error) {
    return ort().CreateStatus(kFail, error.what());
  }
}

OrtStatus* create(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
  const auto work = [](void* raw_info, void* result) {
    const auto* node = static_cast<const OrtKernelInfo*>(raw_info);
    auto made = std::make_unique<Kernel>();
    check(ort().KernelInfoGetAttribute_int64(node, "N", &made->n));
    check(ort().KernelInfoGetAttribute_int64(node, "K", &made->k));
    check(ort().KernelInfoGetAttribute_int64(node, "block_size", &made->block));
    *static_cast<void**>(result) = made.release();
  };
  return guarded(work, const_cast<OrtKernelInfo*>(info), kernel);
}

OrtStatus* compute(void* kernel, OrtKernelContext* context) {
  return guarded([](void* k, void* c) { static_cast<const Kernel*>(k)->compute(static_cast<OrtKernelContext*>(c)); },
                 kernel, context);
}

const OrtCustomOp* custom_op() {
  static const CustomOp op = [] {
    CustomOp made = {};
    made.version = kApiVersion;
    made.GetName = [](const OrtCustomOp*) { return kName; };
    made.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    made.GetInputType = [](const OrtCustomOp*, size_t index) {
      constexpr DType kTypes[kInputs] = {DType::kFloat32, DType::kUInt8, DType::kFloat16, DType::kUInt8};
      return static_cast<int>(kTypes[index]);
    };
    made.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return kInputs; };
    made.GetOutputType = [](const OrtCustomOp*, size_t) { return static_cast<int>(DType::kFloat32); };
    made.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    made.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    made.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };  // required
    made.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };
    made.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };  // the provider's own
    made.CreateKernelV2 = create;
    made.KernelComputeV2 = compute;
    made.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    made.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    return made;
  }();
  return reinterpret_cast<const OrtCustomOp*>(&op);
}

// Field numbers of onnx.proto.
enum Model : uint32_t { kGraph = 7, kOpsetImport = 8 };
enum Graph : uint32_t { kNode = 1, kInitializer = 5, kGraphOutput = 12 };
enum NodeField : uint32_t {
  kNodeInput = 1,
  kNodeOutput = 2,
  kNodeName = 3,
  kOpType = 4,
  kAttribute = 5,
  kNodeDomain = 7
};
enum AttributeField : uint32_t { kAttributeName = 1, kAttributeInt = 3, kAttributeGraph = 6, kAttributeGraphs = 11 };
enum Tensor : uint32_t { kDataType = 2, kTensorName = 8 };
enum Opset : uint32_t { kOpsetDomain = 1, kOpsetVersion = 2 };
constexpr uint32_t kValueName = 1;

struct Node {
  std::vector<std::string_view> inputs, outputs;
  std::string_view name, op_type, domain, whole;
  std::map<std::string_view, int64_t> numbers;  // attributes
  bool has_graph = false;
};

Node read_node(std::string_view bytes) {
  Node node;
  node.whole = bytes;
  protobuf::Field field, part;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    switch (field.number) {
      case kNodeInput: node.inputs.push_back(field.bytes); break;
      case kNodeOutput: node.outputs.push_back(field.bytes); break;
      case kNodeName: node.name = field.bytes; break;
      case kOpType: node.op_type = field.bytes; break;
      case kNodeDomain: node.domain = field.bytes; break;
      case kAttribute: {
        std::string_view name;
        int64_t number = 0;
        for (protobuf::Reader attribute(field.bytes); attribute.next(part);) {
          if (part.number == kAttributeName) name = part.bytes;
          if (part.number == kAttributeInt) number = static_cast<int64_t>(part.value);
          if (part.number == kAttributeGraph || part.number == kAttributeGraphs) node.has_graph = true;
        }
        node.numbers[name] = number;
        break;
      }
      default: break;
    }
  }
  return node;
}

// Names of constants and their types, nodes, and the names that the graph gives.
struct Parts {
  std::map<std::string_view, DType> constants;
  std::vector<Node> nodes;
  std::map<std::string_view, size_t> uses;
  bool has_graph = false;

  explicit Parts(std::string_view graph) {
    protobuf::Field field, part;
    for (protobuf::Reader reader(graph); reader.next(field);) {
      if (field.number == kInitializer) {
        std::string_view name;
        DType dtype = DType::kUndefined;
        for (protobuf::Reader tensor(field.bytes); tensor.next(part);) {
          if (part.number == kDataType) dtype = static_cast<DType>(part.value);
          if (part.number == kTensorName) name = part.bytes;
        }
        constants[name] = dtype;
      } else if (field.number == kNode) {
        nodes.push_back(read_node(field.bytes));
        has_graph = has_graph || nodes.back().has_graph;
        for (std::string_view input : nodes.back().inputs) ++uses[input];
      } else if (field.number == kGraphOutput) {
        for (protobuf::Reader value(field.bytes); value.next(part);) {
          if (part.number == kValueName) ++uses[part.bytes];
        }
      }
    }
  }

  bool is_constant(std::string_view name, DType dtype) const {
    const auto found = constants.find(name);
    return found != constants.end() && found->second == dtype;
  }
};

std::string own_node(const Node& node, std::string_view scales) {
  std::string result;
  for (size_t i = 0; i < kInputs; ++i) protobuf::write(result, kNodeInput, i == kScales ? scales : node.inputs[i]);
  protobuf::write(result, kNodeOutput, node.outputs[0]);
  protobuf::write(result, kNodeName, node.name);
  protobuf::write(result, kOpType, std::string_view(kName));
  for (const char* name : {"N", "K", "block_size"}) {
    constexpr uint32_t kAttributeType = 20;
    constexpr uint64_t kInt = 2;
    std::string attribute;
    protobuf::write(attribute, kAttributeName, std::string_view(name));
    protobuf::write(attribute, kAttributeInt, static_cast<uint64_t>(node.numbers.at(name)));
    protobuf::write(attribute, kAttributeType, kInt);
    protobuf::write(result, kAttribute, attribute);
  }
  protobuf::write(result, kNodeDomain, std::string_view(kDomain));
  return result;
}

// The graph with our operator; empty where there is nothing to replace.
std::string replace_in_graph(std::string_view graph) {
  Parts parts(graph);
  if (parts.has_graph) return "";                       // a subgraph may use what we would remove
  std::map<std::string_view, std::string_view> halves;  // a cast constant -> the constant
  for (const Node& node : parts.nodes) {
    const bool unary = node.inputs.size() == 1 && node.outputs.size() == 1;
    if (unary && node.op_type == "Cast" && node.domain.empty() && parts.is_constant(node.inputs[0], DType::kFloat16)) {
      halves[node.outputs[0]] = node.inputs[0];
    }
  }
  std::map<std::string_view, std::string> replaced;  // by the node's first output
  for (const Node& node : parts.nodes) {
    if (node.op_type != "MatMulNBits" || node.domain != "com.microsoft") continue;
    if (node.inputs.size() != kInputs || node.outputs.size() != 1) continue;
    const auto number = [&](const char* name) {
      const auto found = node.numbers.find(name);
      return found == node.numbers.end() ? 0 : found->second;
    };
    const int64_t block = number("block_size");
    const auto scales = halves.find(node.inputs[kScales]);
    const bool known = number("bits") == 4 && (block == 32 || block == 64 || block == 128) && number("N") > 0 &&
                       number("K") > 0 && scales != halves.end();
    if (!known || !parts.is_constant(node.inputs[kCodes], DType::kUInt8) ||
        !parts.is_constant(node.inputs[kZeroPoints], DType::kUInt8)) {
      continue;
    }
    replaced[node.outputs[0]] = own_node(node, scales->second);
    --parts.uses[scales->first];
  }
  if (replaced.empty()) return "";
  std::string result;
  protobuf::Field field;
  auto node = parts.nodes.begin();
  for (protobuf::Reader reader(graph); reader.next(field);) {
    if (field.number != kNode) {
      result += field.whole;
      continue;
    }
    const std::string_view output = node->outputs.empty() ? std::string_view() : node->outputs[0];
    const auto own = replaced.find(output);
    if (own != replaced.end()) {
      protobuf::write(result, kNode, own->second);
    } else if (halves.count(output) == 0 || parts.uses[output] > 0) {
      result += field.whole;
    }
    ++node;
  }
  return result;
}

}  // namespace

std::string with_own_matmul(const std::string& bytes) {
  if (int4_kernel() == nullptr) return "";
  std::string result, graph;
  protobuf::Field field;
  for (protobuf::Reader reader(bytes); reader.next(field);) {
    if (field.number != kGraph) {
      result += field.whole;
      continue;
    }
    graph = replace_in_graph(field.bytes);
    protobuf::write(result, kGraph, graph);
  }
  if (graph.empty()) return "";
  std::string opset;
  protobuf::write(opset, kOpsetDomain, std::string_view(kDomain));
  protobuf::write(opset, kOpsetVersion, uint64_t{1});
  protobuf::write(result, kOpsetImport, opset);
  return result;
}

void add_own_matmul(OrtSessionOptions* options) {
  // One for the process, as sessions keep pointing to it.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain(kDomain, &made));
    check(ort().CustomOpDomain_Add(made, custom_op()));
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

}  // namespace blip2rt
