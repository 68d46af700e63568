// Our products inside ONNX Runtime: its threads, its tensors, our arithmetic.
#include "matmul_op.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <stdexcept>

#include "int4_matmul.h"
#include "int8_matmul.h"

namespace blip2rt {
namespace {

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

// Calls work(first, last) for parts of 0 to count, `at_once` of them together, on ONNX Runtime's threads.
template <class F>
void in_parts(OrtKernelContext* context, size_t count, size_t at_once, const F& work) {
  struct Parts {
    const F* work;
    size_t count, at_once;
  } parts = {&work, count, at_once};
  const auto one = [](void* data, size_t part) {
    const Parts& p = *static_cast<const Parts*>(data);
    (*p.work)(part* p.at_once, std::min(p.count, (part + 1) * p.at_once));
  };
  check(ort().KernelContext_ParallelFor(context, one, (count + at_once - 1) / at_once, 0, &parts));
}

// What every product has: rows of width K in, rows of width N out. No vector: a token allocates nothing.
struct Product {
  static constexpr size_t kMostAxes = 8, kMostInputs = 4;
  size_t rows = 1, inputs;
  const void* data[kMostInputs];
  float* out = nullptr;

  Product(OrtKernelContext* context, size_t count, int64_t n, int64_t k) : inputs(count) {
    const OrtValue* values[kMostInputs];
    for (size_t i = 0; i < inputs; ++i) {
      void* raw = nullptr;
      check(ort().KernelContext_GetInput(context, i, &values[i]));
      check(ort().GetTensorMutableData(const_cast<OrtValue*>(values[i]), &raw));
      data[i] = raw;
    }
    int64_t axes[kMostAxes];
    size_t rank = 0;
    OrtTensorTypeAndShapeInfo* raw = nullptr;
    check(ort().GetTensorTypeAndShape(values[0], &raw));
    TensorTypeAndShapeInfo info(raw);
    check(ort().GetDimensionsCount(raw, &rank));
    if (rank > kMostAxes) throw std::runtime_error("a product of more than 8 axes");
    check(ort().GetDimensions(raw, axes, rank));
    if (rank == 0 || axes[rank - 1] != k) throw std::runtime_error("a product's input has the wrong width");
    for (size_t i = 0; i + 1 < rank; ++i) rows *= static_cast<size_t>(axes[i]);
    axes[rank - 1] = n;
    OrtValue* output = nullptr;
    void* to = nullptr;
    check(ort().KernelContext_GetOutput(context, 0, axes, rank, &output));
    check(ort().GetTensorMutableData(output, &to));
    out = static_cast<float*>(to);
  }

  template <class T>
  const T* input(size_t index) const {
    return static_cast<const T*>(data[index]);
  }
};

int64_t attribute(const OrtKernelInfo* info, const char* name) {
  int64_t value = 0;
  check(ort().KernelInfoGetAttribute_int64(info, name, &value));
  return value;
}

struct MatMulInt4 {
  static constexpr const char* kName = kMatMulInt4;
  static constexpr DType kInputs[] = {DType::kFloat32, DType::kUInt8, DType::kFloat16, DType::kUInt8};
  static constexpr size_t kRequired = 4;
  int64_t n, k, block;

  explicit MatMulInt4(const OrtKernelInfo* info)
      : n(attribute(info, "N")), k(attribute(info, "K")), block(attribute(info, "block_size")) {}

  void compute(OrtKernelContext* context) const {
    const Product product(context, kRequired, n, k);
    const Int4Matrix matrix = {static_cast<size_t>(n),    static_cast<size_t>(k),     static_cast<size_t>(block),
                               product.input<uint8_t>(1), product.input<uint16_t>(2), product.input<uint8_t>(3)};
    thread_local Buffer values, scales;
    const size_t blocks = product.rows * matrix.blocks();
    float* of_blocks = scales.get<float>(2 * blocks);
    const Int4Input input = {product.rows, values.get<int8_t>(blocks * matrix.block), of_blocks, of_blocks + blocks};
    const Int4Kernel* kernel = int4_kernel();
    for (size_t row = 0; row < product.rows; ++row) kernel->quantize(product.input<float>(0), row, matrix, input);
    // Parts of about 64 KiB of weights: long enough to be worth a thread, short enough to keep all busy to the end.
    constexpr size_t kPart = 64 * 1024;
    const size_t tile_bytes = kernel->tile * matrix.blocks() * matrix.block / 2;
    const size_t tiles = (matrix.n + kernel->tile - 1) / kernel->tile;
    const size_t at_once = std::max<size_t>(1, kPart / std::max<size_t>(1, tile_bytes));
    in_parts(context, tiles, at_once, [&](size_t first, size_t last) {
      thread_local Buffer scratch;
      kernel->multiply(matrix, input, product.out, first, last, scratch.get<uint8_t>(kernel->scratch_size(matrix)));
    });
  }
};

struct MatMulInt8 {
  static constexpr const char* kName = kMatMulInt8;
  static constexpr DType kInputs[] = {DType::kFloat32, DType::kInt8, DType::kFloat32, DType::kFloat32};
  static constexpr size_t kRequired = 3, kBias = 3;
  int64_t n, k;
  bool bias;

  explicit MatMulInt8(const OrtKernelInfo* info)
      : n(attribute(info, "N")), k(attribute(info, "K")), bias(attribute(info, "bias") != 0) {}

  void compute(OrtKernelContext* context) const {
    const Product product(context, kRequired + bias, n, k);
    const Int8Matrix matrix = {static_cast<size_t>(n), static_cast<size_t>(k), product.input<int8_t>(1),
                               product.input<float>(2), bias ? product.input<float>(kBias) : nullptr};
    thread_local Buffer values, scales, zeros;
    const size_t width = Int8Input::width_of(matrix.k);
    const Int8Input input = {product.rows, width, values.get<uint8_t>(product.rows * width),
                             scales.get<float>(product.rows), zeros.get<int32_t>(product.rows)};
    const Int8Kernel* kernel = int8_kernel();
    constexpr size_t kRows = 16;
    in_parts(context, product.rows, kRows, [&](size_t first, size_t last) {
      for (size_t row = first; row < last; ++row) kernel->quantize(product.input<float>(0), row, matrix.k, input);
    });
    in_parts(context, (matrix.n + kernel->tile - 1) / kernel->tile, 1, [&](size_t first, size_t last) {
      thread_local Buffer scratch;
      kernel->multiply(matrix, input, product.out, first, last, scratch.get<uint8_t>(kernel->scratch_size(matrix)));
    });
  }
};

template <class F>
OrtStatus* guarded(const F& work) {
  constexpr int kFail = 1;
  try {
    work();
    return nullptr;
  } catch (const std::exception& error) {
    return ort().CreateStatus(kFail, error.what());
  }
}

template <class Op>
const OrtCustomOp* custom_op() {
  static const CustomOp op = [] {
    CustomOp made = {};
    made.version = kApiVersion;
    made.GetName = [](const OrtCustomOp*) { return Op::kName; };
    made.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
    made.GetInputType = [](const OrtCustomOp*, size_t index) { return static_cast<int>(Op::kInputs[index]); };
    made.GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Op::kInputs); };
    made.GetOutputType = [](const OrtCustomOp*, size_t) { return static_cast<int>(DType::kFloat32); };
    made.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
    made.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
    made.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return index < Op::kRequired ? 0 : 1; };
    made.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };  // required
    made.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };       // the provider's own
    made.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return guarded([&] { *kernel = new Op(info); });
    };
    made.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return guarded([&] { static_cast<const Op*>(kernel)->compute(context); });
    };
    made.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    made.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    return made;
  }();
  return reinterpret_cast<const OrtCustomOp*>(&op);
}

}  // namespace

void add_own_products(OrtSessionOptions* options) {
  // One for the process, as sessions keep pointing to it.
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    check(ort().CreateCustomOpDomain(kOwnDomain, &made));
    check(ort().CustomOpDomain_Add(made, custom_op<MatMulInt4>()));
    check(ort().CustomOpDomain_Add(made, custom_op<MatMulInt8>()));
    return made;
  }();
  check(ort().AddCustomOpDomain(options, domain));
}

}  // namespace blip2rt
