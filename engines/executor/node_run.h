// What an operator sees of a run: its inputs, memory for its outputs, and threads.
#pragma once

#include <initializer_list>
#include <stdexcept>
#include <string>

#include "executor/arena.h"
#include "executor/graph.h"
#include "executor/thread_pool.h"

namespace blip2rt {

inline void require(bool holds, const char* what) {
  if (!holds) throw std::runtime_error(what);
}

// A shape without memory: same type and axes as a tensor, or changed ones.
inline TensorView shaped(DType dtype, std::initializer_list<uint64_t> axes) {
  TensorView shape;
  shape.dtype = dtype;
  for (const uint64_t axis : axes) shape.axes[shape.rank++] = static_cast<int64_t>(axis);
  return shape;
}

class NodeRun final : public OperatorRun {
 public:
  NodeRun(GraphRun& run, const Step& step) : run_(run), step_(step) {}

  size_t inputs() const { return step_.inputs.size(); }
  size_t outputs() const { return step_.outputs.size(); }

  TensorView input(size_t index) const override {
    const bool exists = index < step_.inputs.size() && step_.inputs[index] != kNoValue;
    return exists ? run_.slots[step_.inputs[index]].view : TensorView();
  }

  // Returns an input that is present. Throws if it has another type.
  TensorView input(size_t index, DType dtype) const {
    const TensorView view = input(index);
    require(view.dtype == dtype, "an input has a type that the executor does not support here");
    return view;
  }
  TensorView floats(size_t index) const { return input(index, DType::kFloat32); }

  // Returns the values of a small list of int64, such as a shape or axes, or a single one.
  std::vector<int64_t> list(size_t index) const;

  // Returns memory for an output of this type and shape.
  TensorView output(size_t index, const TensorView& shape);
  float* output(size_t index, const int64_t* axes, size_t rank) override;

  // Returns memory for output 0, which may be that of an input of as many bytes, if nothing else reads that later: the
  // operator reads each element before it writes it.
  TensorView output_over(size_t input, const TensorView& shape);

  // Makes the output a view of an input's memory, of as many elements.
  void share(size_t output, size_t input, const TensorView& shape);

  // Throws RunTimeout, in which case some parts did not run.
  void run_parts(size_t parts, void (*work)(void* data, size_t part), void* data) override;
  bool finishes() const override { return step_.ending.width > 0; }
  void finish(size_t first, size_t last) override;
  size_t threads() const { return run_.graph.threads; }

 private:
  const TensorView* target_of(size_t output, const TensorView& shape) const;

  GraphRun& run_;
  const Step& step_;
};

}  // namespace blip2rt
