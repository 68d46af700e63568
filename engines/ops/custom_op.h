// Turns our operators into custom operators of ONNX Runtime.
#pragma once

#include <exception>
#include <iterator>
#include <new>
#include <vector>

#include "ops/operator.h"
#include "ort/ort_api.h"

namespace blip2rt {

// One of our operators, for both runtimes.
struct OperatorType {
  const char* name;
  std::vector<DType> inputs;
  bool (*optional)(size_t input);
  size_t outputs;  // float32
  std::unique_ptr<Operator> (*make)(const OperatorAttributes& attributes);
  const OrtCustomOp* (*custom_op)();
};

class OrtRun : public OperatorRun {
 public:
  explicit OrtRun(OrtKernelContext* context) : context_(context) {}

  TensorView input(size_t index) const override {
    const OrtValue* value = nullptr;
    check(ort().KernelContext_GetInput(context_, index, &value));
    return value == nullptr ? TensorView() : view_of(value);
  }

  float* output(size_t index, const int64_t* axes, size_t rank) override {
    OrtValue* value = nullptr;
    void* data = nullptr;
    check(ort().KernelContext_GetOutput(context_, index, axes, rank, &value));
    check(ort().GetTensorMutableData(value, &data));
    return static_cast<float*>(data);
  }

  void run_parts(size_t parts, void (*work)(void* data, size_t part), void* data) override {
    check(ort().KernelContext_ParallelFor(context_, work, parts, 0, data));
  }

 private:
  OrtKernelContext* context_;
};

class OrtAttributes : public OperatorAttributes {
 public:
  explicit OrtAttributes(const OrtKernelInfo* info) : info_(info) {}

  int64_t integer(const char* name) const override {
    int64_t value = 0;
    check(ort().KernelInfoGetAttribute_int64(info_, name, &value));
    return value;
  }

  float number(const char* name) const override {
    float value = 0;
    check(ort().KernelInfoGetAttribute_float(info_, name, &value));
    return value;
  }

 private:
  const OrtKernelInfo* info_;
};

template <class F>
OrtStatus* catch_errors(const F& work) {
  constexpr int kFail = 1;
  try {
    work();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return ort().CreateStatus(kFail, "out of memory");
  } catch (const std::exception& error) {
    return ort().CreateStatus(kFail, error.what());
  } catch (...) {
    return ort().CreateStatus(kFail, "an operator failed");
  }
}

// Creates the operator for a class Op with kName, kInputs (their types), optional(index), kOutputs (number of float32
// outputs), and a constructor from OperatorAttributes.
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
    made.GetOutputTypeCount = [](const OrtCustomOp*) { return Op::kOutputs; };
    made.KernelDestroy = [](void* kernel) { delete static_cast<Op*>(kernel); };
    made.GetInputCharacteristic = [](const OrtCustomOp*, size_t index) { return Op::optional(index) ? 1 : 0; };
    made.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return 0; };  // required
    made.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return 0; };       // the provider's memory
    made.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return catch_errors([&] { *kernel = new Op(OrtAttributes(info)); });
    };
    made.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      return catch_errors([&] {
        OrtRun run(context);
        static_cast<const Op*>(kernel)->compute(run);
      });
    };
    made.GetStartVersion = [](const OrtCustomOp*) { return 1; };
    made.GetEndVersion = [](const OrtCustomOp*) { return 1; };
    return made;
  }();
  return reinterpret_cast<const OrtCustomOp*>(&op);
}

template <class Op>
OperatorType operator_type() {
  const auto make = [](const OperatorAttributes& of) -> std::unique_ptr<Operator> { return std::make_unique<Op>(of); };
  return {Op::kName, {std::begin(Op::kInputs), std::end(Op::kInputs)}, Op::optional, Op::kOutputs, make, custom_op<Op>};
}

}  // namespace blip2rt
