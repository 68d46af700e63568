// Matrix products in floats: of two tensors, with weights in blocks of 4 or 8 bits, and convolutions. Products with
// int4 and int8 kernels are operators of ops/.
#include <algorithm>
#include <array>

#include "executor/broadcast.h"
#include "executor/numbers.h"
#include "executor/operators.h"
#include "executor/vectors.h"

namespace blip2rt {
namespace {

// Products of the same size: x (rows, k) times a matrix (k, n).
struct Products {
  size_t count, rows, k, n;
};

// Computes panels of columns. x_of(i) and out_of(i): the operands of product i. pack(i, column, columns, to): writes
// these columns of matrix i to `to` (k, panel). matrix_of(i): the matrix (k, n) if it can be read where it is.
template <class X, class Out, class Pack, class Matrix>
void multiply(NodeRun& run, const Products& p, const X& x_of, const Out& out_of, const Pack& pack,
              const Matrix& matrix_of) {
  constexpr size_t kFewRows = 4, kMinPartProducts = 64 * 1024;
  const VectorLoops& loops = vector_loops();
  const size_t panels = (p.n + loops.panel - 1) / loops.panel;
  const size_t part = std::max<size_t>(1, kMinPartProducts / std::max<size_t>(1, p.rows * p.k * loops.panel));
  parallel_for(run, p.count * panels, part, [&](size_t first, size_t last) {
    thread_local Buffer scratch;
    while (first < last) {
      const size_t i = first / panels, panel = first % panels;
      const size_t many = std::min(last - first, panels - panel), column = panel * loops.panel;
      const size_t columns = std::min(p.n, column + many * loops.panel) - column;
      FloatProduct product = {x_of(i), p.k, p.rows, p.k, nullptr, p.n, out_of(i) + column, p.n, columns};
      size_t done = 0;
      if (const float* matrix = p.rows <= kFewRows ? matrix_of(i) : nullptr) {
        product.b = matrix + column;
        done = loops.multiply_few(product);
        run.finish(column, column + done);
      }
      float* packed = scratch.get<float>(p.k * loops.panel);
      for (; done < columns; done += loops.panel) {
        const size_t some = std::min(loops.panel, columns - done);
        if (some < loops.panel) std::fill_n(packed, p.k * loops.panel, 0.0f);
        pack(i, column + done, some, packed);
        loops.multiply({x_of(i), p.k, p.rows, p.k, packed, loops.panel, out_of(i) + column + done, p.n, some});
        run.finish(column + done, column + done + some);
      }
      first += many;
    }
  });
}

// Copies columns of a matrix (k, n).
void pack_rows(const float* matrix, size_t k, size_t n, size_t column, size_t columns, size_t panel, float* to) {
  for (size_t i = 0; i < k; ++i) std::copy_n(matrix + i * n + column, columns, to + i * panel);
}

// Copies rows of a matrix (n, k) as columns.
void pack_columns(const float* matrix, size_t k, size_t column, size_t columns, size_t panel, float* to) {
  for (size_t j = 0; j < columns; ++j) {
    const float* from = matrix + (column + j) * k;
    for (size_t i = 0; i < k; ++i) to[i * panel + j] = from[i];
  }
}

// Numpy's product of the last two axes, for every combination of the others.
Compute matmul(const Node&) {
  return [](NodeRun& run) {
    const TensorView a = run.floats(0), b = run.floats(1);
    require(a.rank >= 2 && b.rank >= 2, "the executor multiplies matrices only");
    const size_t k = a.size(a.rank - 1), n = b.size(b.rank - 1);
    require(b.size(b.rank - 2) == k, "the matrices do not fit each other");
    TensorView a_rest = a, b_rest = b;
    a_rest.rank -= 2;
    b_rest.rank -= 2;
    size_t rows = a.size(a.rank - 2);
    const bool is_one_matrix = b_rest.count() == 1 && b.rank <= a.rank;
    if (is_one_matrix) {
      rows *= a_rest.count();
      a_rest.rank = b_rest.rank = 0;
    }
    const Broadcast loops(std::array<TensorView, 2>{a_rest, b_rest});
    TensorView shape = is_one_matrix ? a : loops.shape;
    if (!is_one_matrix) {
      shape.axes[shape.rank] = a.axes[a.rank - 2];
      shape.rank += 2;
    }
    shape.dtype = DType::kFloat32;
    shape.axes[shape.rank - 1] = static_cast<int64_t>(n);
    float* out = run.output(0, shape).as<float>();
    const size_t count = loops.shape.count(), inner = std::max<size_t>(1, loops.inner());
    const auto at = [&](size_t operand, size_t i) {
      return loops.offset(operand, i / inner) + i % inner * loops.step(operand);
    };
    const auto matrix = [&](size_t i) { return b.as<float>() + at(1, i) * k * n; };
    multiply(
        run, {count, rows, k, n}, [&](size_t i) { return a.as<float>() + at(0, i) * rows * k; },
        [&](size_t i) { return out + i * rows * n; },
        [&](size_t i, size_t column, size_t columns, float* to) {
          pack_rows(matrix(i), k, n, column, columns, vector_loops().panel, to);
        },
        matrix);
  };
}

// a (rows, k) times b (k, n), or b (n, k) with transB, plus c (n).
Compute gemm(const Node& node) {
  const auto factor = [&](const char* name) {
    const auto found = node.floats.find(name);
    return found == node.floats.end() ? 1.0f : found->second;
  };
  const bool turned = node.number("transB", 0) != 0;
  require(factor("alpha") == 1 && factor("beta") == 1 && node.number("transA", 0) == 0,
          "the executor supports no alpha, beta and transA");
  return [=](NodeRun& run) {
    const TensorView a = run.floats(0), b = run.floats(1), c = run.input(2) ? run.floats(2) : TensorView();
    require(a.rank == 2 && b.rank == 2, "the operands are not matrices");
    const size_t rows = a.size(0), k = a.size(1), n = b.size(turned ? 0 : 1);
    require(b.size(turned ? 1 : 0) == k && (!c || (c.rank == 1 && c.size(0) == n)), "the operands do not fit");
    float* out = run.output(0, shaped(DType::kFloat32, {rows, n})).as<float>();
    const auto* matrix = b.as<float>();
    multiply(
        run, {1, rows, k, n}, [&](size_t) { return a.as<float>(); }, [&](size_t) { return out; },
        [&](size_t, size_t column, size_t columns, float* to) {
          if (turned) return pack_columns(matrix, k, column, columns, vector_loops().panel, to);
          pack_rows(matrix, k, n, column, columns, vector_loops().panel, to);
        },
        [&](size_t) { return turned ? nullptr : matrix; });
    for (size_t i = 0; c && i < rows; ++i) {
      vector_loops().binary(Binary::kAdd, out + i * n, 1, c.as<float>(), 1, n, out + i * n);
    }
  };
}

// x (.., k) times a matrix (n, k) in blocks along k, (code - zero point) * scale: 8-bit weights, and 4-bit weights that
// no kernel of kernels/int4 runs.
Compute matmul_nbits(const Node& node) {
  const auto size = [&](const char* name) {
    const int64_t number = node.number(name, 0);
    require(number > 0 && number <= INT32_MAX, "a size is not positive");
    return static_cast<size_t>(number);
  };
  const size_t n = size("N"), k = size("K"), block = size("block_size"), bits = size("bits");
  require((bits == 4 || bits == 8) && block % 2 == 0, "the executor supports 4 and 8 bits only");
  return [=](NodeRun& run) {
    const uint64_t blocks = (uint64_t{k} + block - 1) / block, zero_bytes = (blocks * bits + 7) / 8;
    const TensorView x = run.floats(0), codes = run.input(1, DType::kUInt8), scales = run.floats(2);
    const TensorView zeros = run.input(3, DType::kUInt8);
    require(x.rank > 0 && x.size(x.rank - 1) == k && codes.count() == blocks * block * bits / 8 * n &&
                scales.count() == n * blocks && zeros.count() == n * zero_bytes,
            "the weights do not fit");
    TensorView shape = x;
    shape.axes[x.rank - 1] = static_cast<int64_t>(n);
    float* out = run.output(0, shape).as<float>();
    multiply(
        run, {1, x.count() / k, k, n}, [&](size_t) { return x.as<float>(); }, [&](size_t) { return out; },
        [&](size_t, size_t column, size_t columns, float* to) {
          for (size_t j = 0; j < columns; ++j) {
            const size_t row = column + j;
            const uint8_t* of_row = codes.as<uint8_t>() + row * blocks * block * bits / 8;
            for (size_t i = 0; i < k; ++i) {
              const size_t at = i / block;
              const int zero = code_at(zeros.as<uint8_t>() + row * zero_bytes, at, bits);
              to[i * vector_loops().panel + j] =
                  static_cast<float>(code_at(of_row, i, bits) - zero) * scales.as<float>()[row * blocks + at];
            }
          }
        },
        [](size_t) -> const float* { return nullptr; });
  };
}

// A convolution of images (B, C, H, W) with weights (O, C, h, w), without groups.
struct Convolution {
  std::array<int64_t, 4> pads = {};
  std::array<int64_t, 2> strides = {1, 1}, dilations = {1, 1};
};

template <size_t N>
void read_list(const Node& node, const char* name, std::array<int64_t, N>& to) {
  const auto found = node.lists.find(name);
  if (found == node.lists.end()) return;
  require(found->second.size() == N, "the executor convolves images only");
  for (size_t i = 0; i < N; ++i) {
    to[i] = static_cast<int64_t>(found->second[i]);
    require(to[i] >= 0 && to[i] <= 1024, "a stride or a pad is out of range");
  }
}

Compute conv(const Node& node) {
  Convolution c;
  read_list(node, "pads", c.pads);
  read_list(node, "strides", c.strides);
  read_list(node, "dilations", c.dilations);
  require(node.number("group", 1) == 1, "the executor supports no groups");
  require(c.strides[0] * c.strides[1] * c.dilations[0] * c.dilations[1] > 0, "a stride is 0");
  return [=](NodeRun& run) {
    const TensorView x = run.floats(0), w = run.floats(1), bias = run.input(2) ? run.floats(2) : TensorView();
    require(x.rank == 4 && w.rank == 4 && x.axes[1] == w.axes[1], "the weights do not fit the image");
    require(!bias || (bias.rank == 1 && bias.axes[0] == w.axes[0]), "the bias does not fit");
    int64_t sizes[2];
    for (size_t i = 0; i < 2; ++i) {
      const int64_t covered = c.dilations[i] * (w.axes[2 + i] - 1) + 1;
      const int64_t room = x.axes[2 + i] + c.pads[i] + c.pads[2 + i] - covered;
      require(w.axes[2 + i] > 0 && room >= 0, "the image is smaller than the weights");
      sizes[i] = room / c.strides[i] + 1;
    }
    const size_t outs = w.size(0), k = w.size(1) * w.size(2) * w.size(3);
    const auto n = static_cast<size_t>(sizes[0] * sizes[1]);
    TensorView shape = x;
    shape.axes[1] = w.axes[0];
    std::copy_n(sizes, 2, shape.axes + 2);
    float* out = run.output(0, shape).as<float>();
    const auto pack = [&](size_t image, size_t column, size_t columns, float* to) {
      const float* from = x.as<float>() + image * x.size(1) * x.size(2) * x.size(3);
      for (size_t i = 0; i < k; ++i, to += vector_loops().panel) {
        const auto tap = static_cast<int64_t>(i);
        const int64_t across = tap % w.axes[3], down = tap / w.axes[3] % w.axes[2],
                      channel = tap / (w.axes[2] * w.axes[3]);
        for (size_t j = 0; j < columns; ++j) {
          const auto place = static_cast<int64_t>(column + j);
          const int64_t row = place / sizes[1] * c.strides[0] + down * c.dilations[0] - c.pads[0];
          const int64_t col = place % sizes[1] * c.strides[1] + across * c.dilations[1] - c.pads[1];
          const bool inside = row >= 0 && row < x.axes[2] && col >= 0 && col < x.axes[3];
          to[j] = inside ? from[(channel * x.axes[2] + row) * x.axes[3] + col] : 0;
        }
      }
    };
    multiply(
        run, {x.size(0), outs, k, n}, [&](size_t) { return w.as<float>(); },
        [&](size_t image) { return out + image * outs * n; }, pack, [](size_t) -> const float* { return nullptr; });
    for (size_t i = 0; bias && i < x.size(0) * outs; ++i) {
      vector_loops().binary(Binary::kAdd, out + i * n, 1, bias.as<float>() + i % outs, 0, n, out + i * n);
    }
  };
}

}  // namespace

std::vector<OperatorKind> product_kinds() {
  return {
      {"", "Conv", conv},
      {"", "Gemm", gemm},
      {"", "MatMul", matmul},
      {"com.microsoft", "MatMulNBits", matmul_nbits},
  };
}

}  // namespace blip2rt
