// Operators that look values up, choose between them, or change their type.
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "executor/broadcast.h"
#include "executor/numbers.h"
#include "executor/operators.h"

namespace blip2rt {
namespace {

struct Half {
  uint16_t bits;
};

template <class To, class From>
To converted(From value) {
  if constexpr (std::is_same_v<From, Half>) {
    return converted<To>(half_to_float(value.bits));
  } else if constexpr (std::is_same_v<To, bool>) {
    return value != 0;
  } else if constexpr (std::is_floating_point_v<From> && std::is_integral_v<To>) {
    constexpr auto kLeast = static_cast<From>(std::numeric_limits<To>::min());
    constexpr auto kMost = static_cast<From>(std::numeric_limits<To>::max());
    if (!(value >= kLeast)) return std::numeric_limits<To>::min();  // NaN, too
    return value >= kMost ? std::numeric_limits<To>::max() : static_cast<To>(value);
  } else {
    return static_cast<To>(value);
  }
}

template <class From, class To>
void convert(NodeRun& run, const TensorView& x, const TensorView& out) {
  const auto* from = x.as<From>();
  auto* to = out.as<To>();
  parallel_for(run, x.count(), 64 * 1024, [&](size_t first, size_t last) {
    for (size_t i = first; i < last; ++i) to[i] = converted<To>(from[i]);
  });
}

template <class From>
void convert_from(NodeRun& run, const TensorView& x, const TensorView& out) {
  switch (out.dtype) {
    case DType::kFloat32: return convert<From, float>(run, x, out);
    case DType::kInt64: return convert<From, int64_t>(run, x, out);
    case DType::kInt32: return convert<From, int32_t>(run, x, out);
    case DType::kBool: return convert<From, bool>(run, x, out);
    default: throw std::runtime_error("the executor does not cast to this type");
  }
}

Compute cast(const Node& node) {
  const auto to = static_cast<DType>(node.number("to", 0));
  return [=](NodeRun& run) {
    const TensorView x = run.input(0);
    TensorView shape = x;
    shape.dtype = to;
    if (to == x.dtype) return run.share(0, 0, shape);
    const TensorView out = run.output(0, shape);
    switch (x.dtype) {
      case DType::kFloat16: return convert_from<Half>(run, x, out);
      case DType::kFloat32: return convert_from<float>(run, x, out);
      case DType::kInt64: return convert_from<int64_t>(run, x, out);
      case DType::kInt32: return convert_from<int32_t>(run, x, out);
      case DType::kInt8: return convert_from<int8_t>(run, x, out);
      case DType::kUInt8: return convert_from<uint8_t>(run, x, out);
      case DType::kBool: return convert_from<uint8_t>(run, x, out);
      default: throw std::runtime_error("the executor does not cast from this type");
    }
  };
}

// Returns an index of int64 or int32, counted from 0. Throws if it is outside `size`.
size_t index_at(const TensorView& indices, size_t i, int64_t size) {
  const int64_t given = indices.dtype == DType::kInt64 ? indices.as<int64_t>()[i] : indices.as<int32_t>()[i];
  const int64_t index = given < 0 ? given + size : given;
  require(index >= 0 && index < size, "an index is out of range");
  return static_cast<size_t>(index);
}

TensorView indices_of(const NodeRun& run, size_t input) {
  const TensorView indices = run.input(input);
  require(indices.dtype == DType::kInt64 || indices.dtype == DType::kInt32, "the indices are not integers");
  return indices;
}

Compute gather(const Node& node) {
  const int64_t given = node.number("axis", 0);
  return [=](NodeRun& run) {
    const TensorView x = run.input(0), indices = indices_of(run, 1);
    const size_t axis = axis_of(given, x.rank);
    std::vector<int64_t> axes(x.axes, x.axes + axis);
    axes.insert(axes.end(), indices.axes, indices.axes + indices.rank);
    axes.insert(axes.end(), x.axes + axis + 1, x.axes + x.rank);
    const TensorView out = run.output(0, TensorView(nullptr, axes, x.dtype));
    size_t outer = 1, bytes = element_size(x.dtype);
    for (size_t i = 0; i < axis; ++i) outer *= x.size(i);
    for (size_t i = axis + 1; i < x.rank; ++i) bytes *= x.size(i);
    char* to = out.as<char>();
    for (size_t row = 0; row < outer; ++row) {
      const char* from = x.as<char>() + row * x.size(axis) * bytes;
      for (size_t i = 0; i < indices.count(); ++i, to += bytes) {
        const size_t index = index_at(indices, i, x.axes[axis]);
        if (bytes > 0) std::memcpy(to, from + index * bytes, bytes);
      }
    }
  };
}

// Rows of a table, by the last axis of the indices.
Compute gather_nd(const Node& node) {
  require(node.number("batch_dims", 0) == 0, "the executor does not support batch_dims");
  return [](NodeRun& run) {
    const TensorView x = run.input(0), indices = run.input(1, DType::kInt64);
    require(indices.rank > 0 && indices.axes[indices.rank - 1] <= static_cast<int64_t>(x.rank),
            "the indices have the wrong shape");
    const size_t depth = indices.size(indices.rank - 1);
    require(indices.rank - 1 + x.rank - depth <= TensorView::kMaxAxes, "the output has too many axes");
    std::vector<int64_t> axes(indices.axes, indices.axes + indices.rank - 1);
    axes.insert(axes.end(), x.axes + depth, x.axes + x.rank);
    const TensorView out = run.output(0, TensorView(nullptr, axes, x.dtype));
    size_t bytes = element_size(x.dtype);
    for (size_t i = depth; i < x.rank; ++i) bytes *= x.size(i);
    const size_t rows = bytes == 0 ? 0 : out.bytes() / bytes;
    for (size_t row = 0; row < rows; ++row) {
      size_t at = 0;
      for (size_t i = 0; i < depth; ++i) at = at * x.size(i) + index_at(indices, row * depth + i, x.axes[i]);
      std::memcpy(out.as<char>() + row * bytes, x.as<char>() + at * bytes, bytes);
    }
  };
}

// A table (V, K) of codes of 4 or 8 bits in blocks along K, with scales and zero points (V, blocks).
Compute gather_block_quantized(const Node& node) {
  const int64_t bits = node.number("bits", 4), block = node.number("block_size", 128);
  require((bits == 4 || bits == 8) && block > 0 && node.number("gather_axis", 0) == 0 &&
              node.number("quantize_axis", 1) == 1,
          "its attributes are not those of exports");
  return [bits = static_cast<size_t>(bits), block = static_cast<size_t>(block)](NodeRun& run) {
    const TensorView codes = run.input(0), indices = indices_of(run, 1), scales = run.floats(2), zeros = run.input(3);
    const DType dtype = bits == 4 ? kUInt4 : DType::kUInt8;
    require(codes.dtype == dtype && zeros.dtype == dtype && codes.rank == 2, "the codes have the wrong type or shape");
    const size_t width = codes.size(1), blocks = (width + block - 1) / block;
    require(scales.rank == 2 && zeros.rank == 2 && scales.axes[0] == codes.axes[0] && zeros.axes[0] == codes.axes[0] &&
                scales.size(1) == blocks && zeros.size(1) == blocks,
            "the scales do not fit the codes");
    TensorView shape = indices;
    shape.dtype = DType::kFloat32;
    require(shape.rank < TensorView::kMaxAxes, "the indices have too many axes");
    shape.axes[shape.rank++] = codes.axes[1];
    float* out = run.output(0, shape).as<float>();
    for (size_t i = 0; i < indices.count(); ++i, out += width) {
      const size_t row = index_at(indices, i, codes.axes[0]);
      for (size_t k = 0; k < width; ++k) {
        const size_t at = row * blocks + k / block;
        const int code = code_at(codes.as<uint8_t>(), row * width + k, bits);
        out[k] = static_cast<float>(code - code_at(zeros.as<uint8_t>(), at, bits)) * scales.as<float>()[at];
      }
    }
  };
}

Compute range(const Node&) {
  return [](NodeRun& run) {
    constexpr int64_t kMost = int64_t{1} << 40;
    int64_t limits[3];
    for (size_t i = 0; i < 3; ++i) {
      const TensorView one = run.input(i, DType::kInt64);
      require(one.count() == 1, "a limit is not a single number");
      limits[i] = *one.as<int64_t>();
      require(limits[i] > -kMost && limits[i] < kMost, "a limit is too large");
    }
    const auto [start, end, step] = limits;
    require(step != 0, "the step is 0");
    const int64_t count =
        std::max<int64_t>(0, step > 0 ? (end - start + step - 1) / step : (start - end - step - 1) / -step);
    auto* out = run.output(0, shaped(DType::kInt64, {static_cast<uint64_t>(count)})).as<int64_t>();
    for (int64_t i = 0; i < count; ++i) out[i] = start + i * step;
  };
}

template <class T>
void choose(NodeRun& run, const Broadcast& loops, const std::array<TensorView, 3>& operands, const TensorView& out) {
  const auto* condition = operands[0].as<uint8_t>();
  const T *yes = operands[1].as<T>(), *no = operands[2].as<T>();
  each_run(run, loops, [&](size_t to, size_t count, const auto& from) {
    for (size_t i = 0; i < count; ++i) {
      out.as<T>()[to + i] = condition[from[0] + i * loops.step(0)] != 0 ? yes[from[1] + i * loops.step(1)]
                                                                        : no[from[2] + i * loops.step(2)];
    }
  });
}

Compute where(const Node&) {
  return [](NodeRun& run) {
    const DType dtype = run.input(1).dtype;
    const std::array<TensorView, 3> operands = {run.input(0, DType::kBool), run.input(1), run.input(2, dtype)};
    const Broadcast loops(operands);
    TensorView shape = loops.shape;
    shape.dtype = dtype;
    const TensorView out = run.output(0, shape);
    switch (element_size(dtype)) {
      case 1: return choose<uint8_t>(run, loops, operands, out);
      case 2: return choose<uint16_t>(run, loops, operands, out);
      case 4: return choose<uint32_t>(run, loops, operands, out);
      default: return choose<uint64_t>(run, loops, operands, out);
    }
  };
}

}  // namespace

std::vector<OperatorKind> table_kinds() {
  return {
      {"", "Cast", cast},          {"", "Gather", gather},
      {"", "GatherND", gather_nd}, {"com.microsoft", "GatherBlockQuantized", gather_block_quantized},
      {"", "Range", range},        {"", "Where", where},
  };
}

}  // namespace blip2rt
