// GatherRow copies one position of each row.
#include "ops/gather_op.h"

#include <algorithm>
#include <stdexcept>

#include "ops/custom_op.h"

namespace blip2rt {
namespace {

struct GatherRowOp final : Operator {
  enum Input : size_t { kHidden, kIndex, kRows };
  static constexpr const char* kName = kGatherRow;
  static constexpr DType kInputs[] = {DType::kFloat32, DType::kInt64, DType::kInt32};
  static constexpr size_t kOutputs = 1;
  static bool optional(size_t input) { return input == kRows; }

  explicit GatherRowOp(const OperatorAttributes&) {}

  void compute(OperatorRun& run) const override {
    const TensorView hidden = run.input(kHidden), index = run.input(kIndex), rows = run.input(kRows);
    const int64_t *axes = hidden.axes, *of_index = index.axes;
    if (hidden.rank != 3 || (index.rank != 2 && index.rank != 3) || of_index[0] != axes[0] || of_index[1] != 1 ||
        of_index[index.rank - 1] != 1) {
      throw std::runtime_error("hidden and last_index have the wrong shape");
    }
    if (rows && rows.rank != 1) throw std::runtime_error("logit_rows has the wrong shape");
    const int64_t count = rows ? rows.axes[0] : axes[0];
    const int64_t out_axes[] = {count, index.rank == 3 ? 1 : axes[2], axes[2]};
    float* out = run.output(0, out_axes, index.rank);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t row = rows ? rows.as<int32_t>()[i] : i;
      if (row < 0 || row >= axes[0]) throw std::runtime_error("logit_rows is outside the batch");
      const int64_t given = index.as<int64_t>()[row], position = given < 0 ? given + axes[1] : given;
      if (position < 0 || position >= axes[1]) throw std::runtime_error("last_index is outside the text");
      const float* from = hidden.as<float>() + (row * axes[1] + position) * axes[2];
      std::copy_n(from, axes[2], out + i * axes[2]);
    }
  }
};

}  // namespace

OperatorType gather_row_type() { return operator_type<GatherRowOp>(); }

}  // namespace blip2rt
