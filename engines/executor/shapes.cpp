// Operators that compute shapes, or copy elements to other places.
#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "executor/broadcast.h"
#include "executor/operators.h"

namespace blip2rt {
namespace {

constexpr size_t kPartBytes = 64 * 1024;

size_t product(const TensorView& x, size_t first, size_t last) {
  size_t count = 1;
  for (size_t i = first; i < last; ++i) count *= x.size(i);
  return count;
}

// A shape of these axes, of the type of a tensor.
TensorView with_axes(const TensorView& like, const std::vector<int64_t>& axes) {
  return TensorView(nullptr, axes, like.dtype);
}

Compute shape(const Node& node) {
  const int64_t start = node.number("start", 0), end = node.number("end", INT64_MAX);
  return [=](NodeRun& run) {
    const TensorView x = run.input(0);
    const auto rank = static_cast<int64_t>(x.rank);
    const auto bounded = [=](int64_t axis) { return std::clamp<int64_t>(axis < 0 ? axis + rank : axis, 0, rank); };
    const int64_t first = bounded(start), last = std::max(first, bounded(end));
    const TensorView out = run.output(0, shaped(DType::kInt64, {static_cast<size_t>(last - first)}));
    std::copy(x.axes + first, x.axes + last, out.as<int64_t>());
  };
}

Compute reshape(const Node& node) {
  const bool keeps_zero = node.number("allowzero", 0) != 0;
  return [=](NodeRun& run) {
    const TensorView x = run.input(0);
    std::vector<int64_t> axes = run.list(1);
    uint64_t known = 1;
    size_t unknown = axes.size();
    for (size_t i = 0; i < axes.size(); ++i) {
      if (axes[i] == 0 && !keeps_zero) {
        require(i < x.rank, "a size is copied from an axis that the input lacks");
        axes[i] = x.axes[i];
      }
      if (axes[i] == -1) {
        require(unknown == axes.size(), "two sizes are -1");
        unknown = i;
      } else {
        require(axes[i] >= 0 && !__builtin_mul_overflow(known, axes[i], &known), "a size is negative or too large");
      }
    }
    if (unknown < axes.size()) {
      require(known > 0 && x.count() % known == 0, "the sizes do not fit");
      axes[unknown] = static_cast<int64_t>(x.count() / known);
    }
    run.share(0, 0, with_axes(x, axes));
  };
}

Compute squeeze(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.input(0);
    std::vector<bool> dropped(x.rank);
    if (run.input(1)) {
      dropped = named_axes(run.list(1), x.rank);
    } else {
      for (size_t i = 0; i < x.rank; ++i) dropped[i] = x.axes[i] == 1;
    }
    std::vector<int64_t> axes;
    for (size_t i = 0; i < x.rank; ++i) {
      if (!dropped[i]) axes.push_back(x.axes[i]);
    }
    run.share(0, 0, with_axes(x, axes));
  };
}

Compute unsqueeze(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.input(0);
    const std::vector<int64_t> added = run.list(1);
    const std::vector<bool> is_new = named_axes(added, x.rank + added.size());
    std::vector<int64_t> axes;
    size_t next = 0;
    for (const bool one : is_new) axes.push_back(one ? 1 : x.axes[next++]);
    run.share(0, 0, with_axes(x, axes));
  };
}

Compute identity(const Node&) {
  return [](NodeRun& run) { run.share(0, 0, run.input(0)); };
}

Compute concat(const Node& node) {
  const int64_t given = node.number("axis", 0);
  return [=](NodeRun& run) {
    TensorView shape = run.input(0);
    const size_t axis = axis_of(given, shape.rank);
    for (size_t n = 1; n < run.inputs(); ++n) {
      const TensorView x = run.input(n, shape.dtype);
      require(x.rank == shape.rank, "the inputs have different axes");
      for (size_t i = 0; i < x.rank; ++i) require(i == axis || x.axes[i] == shape.axes[i], "the shapes do not fit");
      shape.axes[axis] += x.axes[axis];
    }
    const TensorView out = run.output(0, shape);
    const size_t item = element_size(out.dtype), outer = product(out, 0, axis);
    const size_t stride = product(out, axis, out.rank) * item;
    char* to = out.as<char>();
    for (size_t n = 0; n < run.inputs(); ++n) {
      const TensorView x = run.input(n);
      const size_t bytes = product(x, axis, x.rank) * item;
      for (size_t i = 0; i < outer && bytes > 0; ++i) std::memcpy(to + i * stride, x.as<char>() + i * bytes, bytes);
      to += bytes;
    }
  };
}

Compute split(const Node& node) {
  const int64_t given = node.number("axis", 0);
  return [=](NodeRun& run) {
    const TensorView x = run.input(0);
    const size_t axis = axis_of(given, x.rank), parts = run.outputs();
    const auto whole = x.axes[axis], count = static_cast<int64_t>(parts), each = (whole + count - 1) / count;
    std::vector<int64_t> sizes(parts, each);
    sizes.back() = whole - each * (count - 1);
    if (run.input(1)) sizes = run.list(1);
    require(sizes.size() == parts, "the numbers of parts and outputs differ");
    int64_t sum = 0;
    for (const int64_t size : sizes)
      require(size >= 0 && size <= whole && (sum += size) <= whole, "the sizes do not fit");
    require(sum == whole, "the sizes do not fit");
    const size_t item = element_size(x.dtype), outer = product(x, 0, axis), rest = product(x, axis + 1, x.rank) * item;
    const char* from = x.as<char>();
    for (size_t n = 0; n < parts; ++n) {
      TensorView shape = x;
      shape.axes[axis] = sizes[n];
      char* to = run.output(n, shape).as<char>();
      const size_t bytes = static_cast<size_t>(sizes[n]) * rest, stride = x.size(axis) * rest;
      for (size_t i = 0; i < outer && bytes > 0; ++i) std::memcpy(to + i * bytes, from + i * stride, bytes);
      from += bytes;
    }
  };
}

// Copies `count` elements that lie `stride` elements apart.
template <class T>
void gather_strided(const char* from, size_t stride, size_t count, char* to) {
  const T* source = reinterpret_cast<const T*>(from);
  for (size_t i = 0; i < count; ++i) reinterpret_cast<T*>(to)[i] = source[i * stride];
}

void copy_strided(size_t item, const char* from, size_t stride, size_t count, char* to) {
  if (stride == 1) {
    std::memcpy(to, from, count * item);
    return;
  }
  switch (item) {
    case 1: return gather_strided<uint8_t>(from, stride, count, to);
    case 2: return gather_strided<uint16_t>(from, stride, count, to);
    case 4: return gather_strided<uint32_t>(from, stride, count, to);
    default: return gather_strided<uint64_t>(from, stride, count, to);
  }
}

// Copies elements from where `strides`, counted from `from`, say to an output.
void copy_view(NodeRun& run, const char* from, const int64_t* strides, const TensorView& out) {
  const size_t item = element_size(out.dtype), inner = out.rank == 0 ? 1 : out.size(out.rank - 1);
  if (out.count() == 0) return;
  const auto step = out.rank == 0 ? size_t{1} : static_cast<size_t>(strides[out.rank - 1]);
  parallel_for(run, out.count() / inner, std::max<size_t>(1, kPartBytes / (inner * item)),
               [&](size_t first, size_t last) {
                 for (size_t row = first; row < last; ++row) {
                   int64_t offset = 0;
                   size_t rest = row;
                   for (size_t axis = out.rank; axis-- > 1;) {
                     offset += static_cast<int64_t>(rest % out.size(axis - 1)) * strides[axis - 1];
                     rest /= out.size(axis - 1);
                   }
                   copy_strided(item, from + offset * static_cast<int64_t>(item), step, inner,
                                out.as<char>() + row * inner * item);
                 }
               });
}

void set_strides(const TensorView& x, int64_t* strides) {
  int64_t stride = 1;
  for (size_t axis = x.rank; axis-- > 0; stride *= x.axes[axis]) strides[axis] = stride;
}

Compute transpose(const Node& node) {
  const auto found = node.lists.find("perm");
  const std::vector<uint64_t> given = found == node.lists.end() ? std::vector<uint64_t>() : found->second;
  return [=](NodeRun& run) {
    const TensorView x = run.input(0);
    std::vector<int64_t> order(given.begin(), given.end());
    for (size_t i = x.rank; given.empty() && i-- > 0;) order.push_back(static_cast<int64_t>(i));
    require(order.size() == x.rank, "perm does not fit the input");
    (void)named_axes(order, x.rank);
    int64_t of_input[TensorView::kMaxAxes], strides[TensorView::kMaxAxes];
    set_strides(x, of_input);
    TensorView shape = x;
    for (size_t i = 0; i < x.rank; ++i) {
      const size_t axis = axis_of(order[i], x.rank);
      shape.axes[i] = x.axes[axis];
      strides[i] = of_input[axis];
    }
    copy_view(run, x.as<char>(), strides, run.output(0, shape));
  };
}

Compute expand(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.input(0);
    const Broadcast loops(std::array<TensorView, 2>{x, TensorView(nullptr, run.list(1), x.dtype)});
    TensorView shape = loops.shape;
    shape.dtype = x.dtype;
    const TensorView out = run.output(0, shape);
    int64_t of_input[TensorView::kMaxAxes], strides[TensorView::kMaxAxes] = {};
    set_strides(x, of_input);
    for (size_t i = 0; i < x.rank; ++i) strides[shape.rank - x.rank + i] = x.axes[i] == 1 ? 0 : of_input[i];
    copy_view(run, x.as<char>(), strides, out);
  };
}

Compute slice(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.input(0);
    const std::vector<int64_t> starts = run.list(1), ends = run.list(2);
    std::vector<int64_t> axes(starts.size()), steps(starts.size(), 1);
    std::iota(axes.begin(), axes.end(), 0);
    if (run.input(3)) axes = run.list(3);
    if (run.input(4)) steps = run.list(4);
    require(starts.size() == ends.size() && starts.size() == axes.size() && starts.size() == steps.size(),
            "starts, ends, axes and steps have different lengths");
    (void)named_axes(axes, x.rank);
    TensorView shape = x;
    int64_t strides[TensorView::kMaxAxes], offset = 0;
    set_strides(x, strides);
    for (size_t i = 0; i < axes.size(); ++i) {
      const size_t axis = axis_of(axes[i], x.rank);
      const int64_t size = x.axes[axis], step = steps[i];
      require(step > 0 && step <= INT32_MAX, "a step is not positive");
      const auto bounded = [=](int64_t at) { return std::clamp<int64_t>(at < 0 ? at + size : at, 0, size); };
      const int64_t first = bounded(starts[i]), last = std::max(first, bounded(ends[i]));
      shape.axes[axis] = (last - first + step - 1) / step;
      offset += first * strides[axis];
      strides[axis] *= step;
    }
    const auto item = static_cast<int64_t>(element_size(x.dtype));
    copy_view(run, x.as<char>() + offset * item, strides, run.output(0, shape));
  };
}

// Calls work(row of x, row of `to`) for every row of `over`, rows lying along the last axis. Row i of `over` is read
// from x at i modulo x's size in each axis, and written to `to` at i + shift.
template <class F>
void each_row(const TensorView& x, const TensorView& over, const std::vector<int64_t>& shift, const TensorView& to,
              const F& work) {
  const size_t rows = product(over, 0, over.rank - 1);
  for (size_t row = 0; row < rows; ++row) {
    size_t rest = row, from = 0, out = 0, x_stride = 1, to_stride = 1;
    for (size_t axis = over.rank - 1; axis-- > 0;) {
      const size_t at = rest % over.size(axis);
      rest /= over.size(axis);
      from += at % x.size(axis) * x_stride;
      out += (at + static_cast<size_t>(shift[axis])) * to_stride;
      x_stride *= x.size(axis);
      to_stride *= to.size(axis);
    }
    work(from, out);
  }
}

// Pads with zeros.
Compute pad(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.input(0);
    const std::vector<int64_t> pads = run.list(1);
    require(x.rank > 0 && pads.size() == 2 * x.rank, "the pads do not fit the input");
    const auto fits = [](int64_t each) { return each >= 0 && each <= INT16_MAX; };
    require(std::all_of(pads.begin(), pads.end(), fits), "a pad is out of range");
    TensorView shape = x;
    for (size_t i = 0; i < x.rank; ++i) shape.axes[i] += pads[i] + pads[x.rank + i];
    const TensorView out = run.output(0, shape);
    if (out.bytes() > 0) std::memset(out.data, 0, out.bytes());
    if (x.count() == 0) return;
    const size_t item = element_size(x.dtype), bytes = x.size(x.rank - 1) * item;
    const size_t stride = out.size(out.rank - 1) * item, first = static_cast<size_t>(pads[x.rank - 1]) * item;
    each_row(x, x, pads, out, [&](size_t from, size_t to) {
      std::memcpy(out.as<char>() + to * stride + first, x.as<char>() + from * bytes, bytes);
    });
  };
}

Compute tile(const Node&) {
  return [](NodeRun& run) {
    const TensorView x = run.input(0);
    const std::vector<int64_t> repeats = run.list(1);
    require(x.rank > 0 && repeats.size() == x.rank, "the repeats do not fit the input");
    TensorView shape = x;
    for (size_t i = 0; i < x.rank; ++i) {
      require(repeats[i] >= 0 && repeats[i] <= INT16_MAX, "a repeat is out of range");
      shape.axes[i] *= repeats[i];
    }
    const TensorView out = run.output(0, shape);
    if (out.count() == 0) return;
    const size_t bytes = x.size(x.rank - 1) * element_size(x.dtype), times = static_cast<size_t>(repeats.back());
    each_row(x, out, std::vector<int64_t>(x.rank), out, [&](size_t from, size_t to) {
      for (size_t i = 0; i < times; ++i)
        std::memcpy(out.as<char>() + (to * times + i) * bytes, x.as<char>() + from * bytes, bytes);
    });
  };
}

}  // namespace

std::vector<OperatorKind> shape_kinds() {
  return {
      {"", "Concat", concat},   {"", "Expand", expand}, {"", "Identity", identity},   {"", "Pad", pad},
      {"", "Reshape", reshape}, {"", "Shape", shape},   {"", "Slice", slice},         {"", "Split", split},
      {"", "Squeeze", squeeze}, {"", "Tile", tile},     {"", "Transpose", transpose}, {"", "Unsqueeze", unsqueeze},
  };
}

}  // namespace blip2rt
