// Iterates over operands of different shapes, as numpy does.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>

#include "executor/node_run.h"

namespace blip2rt {

// Loops over an output and up to three operands. Neighbouring axes are merged where that is possible.
struct Broadcast {
  static constexpr size_t kMaxOperands = 3;
  TensorView shape;  // of the output, without type
  size_t rank = 0;
  size_t sizes[TensorView::kMaxAxes] = {};
  size_t strides[kMaxOperands][TensorView::kMaxAxes] = {};  // 0 where an operand is repeated

  // Throws std::runtime_error if the shapes do not fit.
  template <size_t N>
  explicit Broadcast(const std::array<TensorView, N>& operands) {
    for (const TensorView& operand : operands) shape.rank = std::max(shape.rank, operand.rank);
    std::fill_n(shape.axes, shape.rank, 1);
    for (const TensorView& operand : operands) widen(operand);
    for (size_t axis = 0; axis < shape.rank; ++axis) {
      size_t steps[N];
      for (size_t n = 0; n < N; ++n) steps[n] = stride(operands[n], axis);
      add_axis<N>(shape.size(axis), steps);
    }
  }

  size_t inner() const { return rank == 0 ? 1 : sizes[rank - 1]; }
  size_t step(size_t operand) const { return rank == 0 ? 0 : strides[operand][rank - 1]; }

  // Returns where an operand's run of `inner` elements begins.
  size_t offset(size_t operand, size_t run) const {
    size_t offset = 0;
    for (size_t axis = rank; axis-- > 1;) {
      offset += run % sizes[axis - 1] * strides[operand][axis - 1];
      run /= sizes[axis - 1];
    }
    return offset;
  }

 private:
  void widen(const TensorView& operand) {
    for (size_t i = 0; i < operand.rank; ++i) {
      int64_t& axis = shape.axes[shape.rank - operand.rank + i];
      require(axis == 1 || operand.axes[i] == 1 || axis == operand.axes[i], "the shapes do not fit each other");
      if (axis == 1) axis = operand.axes[i];
    }
  }

  size_t stride(const TensorView& operand, size_t axis) const {
    const size_t missing = shape.rank - operand.rank;
    if (axis < missing || operand.axes[axis - missing] == 1) return 0;
    size_t stride = 1;
    for (size_t i = axis - missing + 1; i < operand.rank; ++i) stride *= operand.size(i);
    return stride;
  }

  template <size_t N>
  void add_axis(size_t size, const size_t (&steps)[N]) {
    if (size == 1) return;
    bool merges = rank > 0;
    for (size_t n = 0; merges && n < N; ++n) merges = strides[n][rank - 1] == steps[n] * size;
    if (!merges) ++rank;
    sizes[rank - 1] = merges ? sizes[rank - 1] * size : size;
    for (size_t n = 0; n < N; ++n) strides[n][rank - 1] = steps[n];
  }
};

// Calls work(out offset, count, operand offsets) for runs in which each operand has the step of `loops`, on several
// threads if there is much to do.
template <class F>
void each_run(NodeRun& run, const Broadcast& loops, const F& work) {
  constexpr size_t kPart = 16 * 1024;
  const size_t inner = loops.inner(), total = loops.shape.count();
  if (total == 0) return;
  const auto offsets_of = [&](size_t outer, size_t first) {
    std::array<size_t, Broadcast::kMaxOperands> offsets;
    for (size_t n = 0; n < offsets.size(); ++n) offsets[n] = loops.offset(n, outer) + first * loops.step(n);
    return offsets;
  };
  const size_t outer = total / inner;
  if (outer == 1) {
    return parallel_for(run, inner, kPart,
                        [&](size_t first, size_t last) { work(first, last - first, offsets_of(0, first)); });
  }
  parallel_for(run, outer, std::max<size_t>(1, kPart / inner), [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) work(i * inner, inner, offsets_of(i, 0));
  });
}

}  // namespace blip2rt
