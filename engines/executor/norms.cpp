// Operators that combine the elements of an axis: norms, softmax, sums.
#include <algorithm>
#include <cmath>

#include "executor/operators.h"
#include "executor/vectors.h"

namespace blip2rt {
namespace {

constexpr size_t kPart = 8 * 1024;  // elements

size_t rows_per_part(size_t width) { return std::max<size_t>(1, kPart / std::max<size_t>(1, width)); }

// LayerNormalization, or SimplifiedLayerNormalization, which does not subtract the mean. The axes from `axis` on are
// normalized together.
template <bool kCenters>
Compute normalization(const Node& node) {
  const int64_t given = node.number("axis", -1);
  const auto found = node.floats.find("epsilon");
  const float epsilon = found == node.floats.end() ? 1e-5f : found->second;
  return [=](NodeRun& run) {
    const TensorView x = run.floats(0), weight = run.floats(1);
    const size_t axis = axis_of(given, x.rank);
    size_t width = 1;
    for (size_t i = axis; i < x.rank; ++i) width *= x.size(i);
    const TensorView bias = run.input(2) ? run.floats(2) : TensorView();
    const auto fits = [&](const TensorView& each) { return each.count() == width && each.rank <= x.rank - axis; };
    require(fits(weight) && (!bias || fits(bias)), "the weights do not fit the input");
    const float* from = x.as<float>();
    float* to = run.output_over(0, x).as<float>();
    if (x.count() == 0) return;
    parallel_for(run, x.count() / width, rows_per_part(width), [&](size_t first, size_t last) {
      for (size_t row = first; row < last; ++row) {
        vector_loops().normalize(from + row * width, width, weight.as<float>(), bias.as<float>(), epsilon, kCenters,
                                 to + row * width);
      }
    });
  };
}

Compute softmax(const Node& node) {
  const int64_t axis = node.number("axis", -1);
  return [=](NodeRun& run) {
    const TensorView x = run.floats(0);
    require(axis_of(axis, x.rank) + 1 == x.rank, "the executor supports the last axis only");
    const size_t width = x.size(x.rank - 1);
    const float* from = x.as<float>();
    float* to = run.output_over(0, x).as<float>();
    if (x.count() == 0) return;
    parallel_for(run, x.count() / width, rows_per_part(width), [&](size_t first, size_t last) {
      for (size_t row = first; row < last; ++row) {
        vector_loops().softmax(from + row * width, width, to + row * width);
      }
    });
  };
}

enum class Reduction { kMean, kSum, kL2 };

// Sums over a middle part of the axes: x (outer, count, inner) -> out (outer, inner).
void reduce(Reduction kind, const float* x, size_t outer, size_t count, size_t inner, float* out) {
  for (size_t i = 0; i < outer; ++i, x += count * inner, out += inner) {
    std::vector<float> squares;
    const float* from = x;
    if (kind == Reduction::kL2) {
      squares.resize(count * inner);
      vector_loops().binary(Binary::kMul, x, 1, x, 1, squares.size(), squares.data());
      from = squares.data();
    }
    if (inner == 1) {
      *out = vector_loops().sum(from, count);
    } else {
      std::fill_n(out, inner, 0.0f);
      for (size_t n = 0; n < count; ++n) vector_loops().binary(Binary::kAdd, out, 1, from + n * inner, 1, inner, out);
    }
    const float scale = 1 / static_cast<float>(count);
    if (kind == Reduction::kMean) vector_loops().binary(Binary::kMul, out, 1, &scale, 0, inner, out);
    if (kind == Reduction::kL2) vector_loops().unary(Unary::kSqrt, out, inner, out);
  }
}

// Reduces neighbouring axes, listed by an input or, before opset 18, by an attribute.
template <Reduction kKind>
Compute reduction(const Node& node) {
  const bool keeps = node.number("keepdims", 1) != 0;
  const auto found = node.lists.find("axes");
  std::vector<int64_t> listed;
  if (found != node.lists.end()) listed.assign(found->second.begin(), found->second.end());
  return [=](NodeRun& run) {
    const TensorView x = run.floats(0);
    const std::vector<int64_t> axes = run.input(1) ? run.list(1) : listed;
    require(!axes.empty() && x.rank > 0, "the executor needs the axes of a reduction");
    const std::vector<bool> reduced = named_axes(axes, x.rank);
    const auto begin = std::find(reduced.begin(), reduced.end(), true);
    const auto first = static_cast<size_t>(begin - reduced.begin()), last = first + axes.size();
    require(std::count(begin, std::find(begin, reduced.end(), false), true) == static_cast<ptrdiff_t>(axes.size()),
            "the executor reduces neighbouring axes only");
    size_t outer = 1, count = 1, inner = 1;
    TensorView shape;
    shape.dtype = DType::kFloat32;
    for (size_t i = 0; i < x.rank; ++i) {
      const bool is_reduced = i >= first && i < last;
      (i < first ? outer : is_reduced ? count : inner) *= x.size(i);
      if (!is_reduced || keeps) shape.axes[shape.rank++] = is_reduced ? 1 : x.axes[i];
    }
    float* out = run.output(0, shape).as<float>();
    parallel_for(run, outer, rows_per_part(count * inner), [&](size_t from, size_t to) {
      reduce(kKind, x.as<float>() + from * count * inner, to - from, count, inner, out + from * inner);
    });
  };
}

}  // namespace

std::vector<OperatorKind> norm_kinds() {
  return {
      {"", "LayerNormalization", normalization<true>},
      {"", "ReduceL2", reduction<Reduction::kL2>},
      {"", "ReduceMean", reduction<Reduction::kMean>},
      {"", "ReduceSum", reduction<Reduction::kSum>},
      {"", "SimplifiedLayerNormalization", normalization<false>},
      {"", "Softmax", softmax},
  };
}

}  // namespace blip2rt
