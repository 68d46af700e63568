// Runs the int4 and int8 kernels on a run's threads and tensors.
#include "ops/matmul_op.h"

#include <string>

#include "kernels/int4/matmul.h"
#include "kernels/int8/matmul.h"
#include "ops/custom_op.h"

namespace blip2rt {
namespace {

// The input and output of a product: rows of width K, and rows of width N.
struct Product {
  size_t rows = 1;
  const float* x;
  float* out;

  Product(OperatorRun& run, size_t n, size_t k) {
    TensorView tensor = run.input(0);
    if (tensor.rank == 0 || static_cast<size_t>(tensor.axes[tensor.rank - 1]) != k) {
      throw std::runtime_error("a product's input has the wrong width");
    }
    for (size_t i = 0; i + 1 < tensor.rank; ++i) rows *= static_cast<size_t>(tensor.axes[i]);
    tensor.axes[tensor.rank - 1] = static_cast<int64_t>(n);
    x = tensor.as<float>();
    out = run.output(0, tensor.axes, tensor.rank);
  }
};

// Limits far above real sizes, so that products of sizes do not overflow.
constexpr int64_t kMaxSize = int64_t{1} << 31, kMaxThreads = 1 << 16;

// Calls work(first, last) for `min_parts` to `max_parts` parts of `tiles`. Every thread gets the same number of parts,
// at least two if possible, so that other threads can help a late one.
template <class F>
void parallel_for_tiles(OperatorRun& run, size_t threads, size_t tiles, size_t min_parts, size_t max_parts,
                        const F& work) {
  const size_t parts_per_thread = std::max<size_t>(2, (min_parts + threads - 1) / threads);
  const size_t parts = std::min({tiles, max_parts, threads * parts_per_thread});
  parallel_for(run, parts, 1, [&](size_t part, size_t) { work(tiles * part / parts, tiles * (part + 1) / parts); });
}

// Returns how many tiles are multiplied before they are finished: as many as stay in the first-level cache.
size_t finished_at_once(size_t rows, const Int4Kernel& kernel) {
  constexpr size_t kFloats = 8 * 1024;
  const size_t columns = kernel.tile * kernel.tiles_at_once;
  return std::max<size_t>(1, kFloats / (rows * columns)) * kernel.tiles_at_once;
}

struct MatMulInt4 final : Operator {
  static constexpr const char* kName = kMatMulInt4;
  static constexpr DType kInputs[] = {DType::kFloat32};
  static constexpr size_t kOutputs = 1;
  Int4Matrix matrix;
  bool split;  // 16-bit activations
  size_t threads;

  explicit MatMulInt4(const OperatorAttributes& info)
      : matrix{info.size("N", kMaxSize),       info.size("K", kMaxSize),         info.size("block_size", 128),
               info.address<uint8_t>("codes"), info.address<uint16_t>("scales"), info.address<uint8_t>("zeros")},
        split(info.integer("split") != 0),
        threads(info.size("threads", kMaxThreads)) {}

  void compute(OperatorRun& run) const override {
    const Product product(run, matrix.n, matrix.k);
    if (product.rows == 0) return;
    thread_local Buffer values, scales;
    const size_t blocks = Int4Input::scales_size(matrix, product.rows);
    const Int4Kernel* kernel = int4_kernel();
    const size_t plane = product_of(kernel->value_copies, Int4Input::plane_size(matrix, product.rows));
    float* of_blocks = scales.get<float>(2 * blocks);
    int8_t* planes = values.get<int8_t>((split ? 2 : 1) * plane);
    const Int4Input quantized = {product.rows, planes, split ? planes + plane : nullptr, of_blocks, of_blocks + blocks};
    parallel_for(run, product.rows, Int4Input::kQuantizeRows, [&](size_t first, size_t last) {
      kernel->quantize(product.x, first, last - first, matrix, quantized);
    });
    // A part is long enough to be worth a thread, and short enough to balance the load.
    constexpr size_t kMaxPartBytes = 1024 * 1024, kMinPartBytes = 16 * 1024;
    const size_t tiles = (matrix.n + kernel->tile - 1) / kernel->tile, together = kernel->tiles_at_once;
    const size_t bytes = matrix.n * matrix.blocks() * matrix.block / 2;
    parallel_for_tiles(run, threads, (tiles + together - 1) / together, bytes / kMaxPartBytes + 1,
                       bytes / kMinPartBytes + 1, [&](size_t first, size_t last) {
                         thread_local Buffer scratch;
                         uint8_t* memory = scratch.get<uint8_t>(kernel->scratch_size(matrix));
                         first *= together;
                         last = std::min(tiles, last * together);
                         const size_t step = run.finishes() ? finished_at_once(product.rows, *kernel) : last - first;
                         for (; first < last; first += step) {
                           const size_t end = std::min(last, first + step);
                           kernel->multiply(matrix, quantized, product.out, first, end, memory);
                           run.finish(first * kernel->tile, std::min(matrix.n, end * kernel->tile));
                         }
                       });
  }
};

struct MatMulInt8 final : Operator {
  static constexpr const char* kName = kMatMulInt8;
  static constexpr DType kInputs[] = {DType::kFloat32};
  static constexpr size_t kOutputs = 1;
  Int8Matrix matrix;
  size_t threads;

  explicit MatMulInt8(const OperatorAttributes& info)
      : matrix{info.size("N", kMaxSize), info.size("K", kInt8MaxDepth), info.address<int8_t>("codes"),
               info.address<float>("scales"), info.address<float>("bias")},
        threads(info.size("threads", kMaxThreads)) {}

  void compute(OperatorRun& run) const override {
    const Product product(run, matrix.n, matrix.k);
    if (product.rows == 0) return;
    thread_local Buffer values, scales, zeros;
    const Int8Kernel* kernel = int8_kernel();
    const size_t width = kernel->row_stride(matrix.k);
    const Int8Input quantized = {product.rows, width, values.get<uint8_t>(kernel->values_size(product.rows, matrix.k)),
                                 scales.get<float>(product.rows), zeros.get<int32_t>(product.rows)};
    parallel_for(run, product.rows, kernel->kRows, [&](size_t first, size_t last) {
      kernel->quantize(product.x, first, last - first, matrix.k, quantized);
    });
    const size_t tiles = (matrix.n + kernel->tile - 1) / kernel->tile, together = kernel->tiles_per_call(matrix.k);
    parallel_for_tiles(run, threads, tiles, (tiles + together - 1) / together, tiles, [&](size_t first, size_t last) {
      thread_local Buffer scratch;
      kernel->multiply(matrix, quantized, product.out, first, last,
                       scratch.get<uint8_t>(kernel->scratch_size(matrix.k)));
      run.finish(first * kernel->tile, std::min(matrix.n, last * kernel->tile));
    });
  }
};

}  // namespace

std::vector<OperatorType> matmul_types() { return {operator_type<MatMulInt4>(), operator_type<MatMulInt8>()}; }

}  // namespace blip2rt
