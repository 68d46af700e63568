// Compares every int8 kernel that this processor supports with plain double arithmetic, on random matrices of awkward
// sizes: int8_check SEED
#include "check.h"
#include "kernels/int8/matmul.h"

namespace {

using namespace blip2rt;

struct Case {
  size_t n, k, rows;
  std::vector<int8_t> codes;
  std::vector<float> scales, bias, x;
  Int8Matrix matrix;

  Case(size_t n_, size_t k_, size_t rows_, bool with_bias, std::mt19937& random)
      : n(n_),
        k(k_),
        rows(rows_),
        codes(k * n),
        scales(n),
        bias(check::normal_floats(n, random)),
        x(check::normal_floats(rows * k, random, 0.5f)) {
    std::uniform_real_distribution<float> positive(0.01f, 0.1f);
    for (auto& code : codes) code = static_cast<int8_t>(random());
    for (auto& scale : scales) scale = positive(random);
    if (rows > 1) std::fill_n(x.begin(), k, 0.0f);
    if (rows > 2) std::transform(&x[k], &x[2 * k], &x[k], [](float v) { return std::fabs(v); });
    matrix = {n, k, codes.data(), scales.data(), with_bias ? bias.data() : nullptr};
  }

  // Returns the outputs of a row of quantized activations.
  std::vector<double> expected(size_t row) const {
    const float* values = &x[row * k];
    const float low = std::min(0.0f, *std::min_element(values, values + k));
    const float high = std::max(0.0f, *std::max_element(values, values + k));
    const float inverse = high > low ? 255.0f / (high - low) : 0.0f;
    const float zero = std::nearbyint(-low * inverse);
    std::vector<int32_t> rounded(k);
    for (size_t i = 0; i < k; ++i) {
      const float whole = std::nearbyint(values[i] * inverse) + zero;
      rounded[i] = static_cast<int32_t>(std::min(255.0f, std::max(0.0f, whole)) - zero);
    }
    std::vector<double> outputs(n);
    for (size_t output = 0; output < n; ++output) {
      const int8_t* output_codes = &codes[output * k];
      int32_t sum = 0;
      for (size_t i = 0; i < k; ++i) sum += rounded[i] * output_codes[i];
      outputs[output] = static_cast<double>(sum) * scales[output] * ((high - low) / 255.0f) +
                        (matrix.bias != nullptr ? matrix.bias[output] : 0.0f);
    }
    return outputs;
  }
};

std::vector<float> multiply(const Int8Kernel& kernel, const Case& c) {
  const auto values = check::aligned_bytes(kernel.values_size(c.rows, c.k));
  const auto scratch = check::aligned_bytes(kernel.scratch_size(c.k));
  std::vector<float> scales(c.rows), out(c.rows * c.n, -1.0f);
  std::vector<int32_t> zeros(c.rows);
  const Int8Input input = {c.rows, kernel.row_stride(c.k), values.get(), scales.data(), zeros.data()};
  const size_t quantized_rows = kernel.kRows;
  for (size_t row = 0; row < c.rows; row += quantized_rows) {
    kernel.quantize(c.x.data(), row, std::min(quantized_rows, c.rows - row), c.k, input);
  }
  const size_t tiles = (c.n + kernel.tile - 1) / kernel.tile, per_call = kernel.tiles_per_call(c.k);
  for (size_t tile = 0; tile < tiles; tile += per_call) {
    kernel.multiply(c.matrix, input, out.data(), tile, std::min(tiles, tile + per_call), scratch.get());
  }
  return out;
}

void check_kernel(const Int8Kernel& kernel, std::mt19937& random) {
  const auto check_case = [&](size_t n, size_t k, size_t rows, bool with_bias) {
    Case c(n, k, rows, with_bias, random);
    const auto run = [&](const Case& each) { return multiply(kernel, each); };
    check::check_product(kernel.name, c, run, 2e-4 * std::sqrt(static_cast<double>(k)), 1e-5);
  };
  for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 32, 33, 40, 65, 530}) {
    const size_t max_outputs = rows > 100 ? 100 : 700;  // keeps emulated processors fast
    for (int i = 0; i < 3; ++i) {
      check_case(1 + random() % max_outputs, 1 + random() % 1600, rows, random() % 2 == 0);
    }
  }
  // The limits of parts: of outputs, of K, of rows.
  check_case(1, 1, 1, true);
  check_case(64, 704, 17, true);
  check_case(33, 1408, 300, true);
  check_case(32, 1472, 289, true);
  check_case(256, 64, 288, true);
}

}  // namespace

int main(int argc, char** argv) { return check::check_kernels(argc, argv, int8_kernel, check_kernel); }
