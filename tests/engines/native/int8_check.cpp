// Every int8 kernel that this processor has, on random matrices of awkward sizes, against plain arithmetic in double.
//
//   int8_check SEED     prints the kernels that it ran; fails with the case that differs
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "kernels/int8/matmul.h"

namespace {

using namespace blip2rt;

struct Sizes {
  size_t n, k, rows;
};

struct Case {
  size_t n, k, rows;
  std::vector<int8_t> codes;
  std::vector<float> scales, bias, x;
  Int8Matrix matrix;

  Case(size_t n_, size_t k_, size_t rows_, bool with_bias, std::mt19937& random)
      : n(n_), k(k_), rows(rows_), codes(k * n), scales(n), bias(n), x(rows * k), matrix{} {
    std::normal_distribution<float> normal;
    std::uniform_real_distribution<float> positive(0.01f, 0.1f);
    for (auto& code : codes) code = static_cast<int8_t>(random());
    for (auto& scale : scales) scale = positive(random);
    for (auto& b : bias) b = normal(random);
    for (auto& value : x) value = normal(random) + 0.5f;
    if (rows > 1) std::fill_n(x.begin(), k, 0.0f);                                                // a row of zeros
    if (rows > 2) std::transform(&x[k], &x[2 * k], &x[k], [](float v) { return std::fabs(v); });  // no negative ones
    matrix = {n, k, codes.data(), scales.data(), with_bias ? bias.data() : nullptr};
  }

  // Every output of a row: what its rounded activations and the weights give, in double.
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
      const int8_t* of_output = &codes[output * k];
      int32_t sum = 0;
      for (size_t i = 0; i < k; ++i) sum += rounded[i] * of_output[i];
      outputs[output] = static_cast<double>(sum) * scales[output] * ((high - low) / 255.0f) +
                        (matrix.bias != nullptr ? matrix.bias[output] : 0.0f);
    }
    return outputs;
  }
};

std::vector<float> product(const Int8Kernel& kernel, const Case& given) {
  const size_t width = kernel.row_stride(given.k), at_once = kernel.kRows;
  const auto memory = [](size_t bytes) {
    return static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
  };
  uint8_t *values = memory(kernel.values_size(given.rows, given.k)), *scratch = memory(kernel.scratch_size(given.k));
  std::vector<float> scales(given.rows), out(given.rows * given.n, -1.0f);
  std::vector<int32_t> zeros(given.rows);
  const Int8Input input = {given.rows, width, values, scales.data(), zeros.data()};
  for (size_t row = 0; row < given.rows; row += at_once) {
    kernel.quantize(given.x.data(), row, std::min(at_once, given.rows - row), given.k, input);
  }
  const size_t tiles = (given.n + kernel.tile - 1) / kernel.tile, together = kernel.tiles_per_call(given.k);
  for (size_t tile = 0; tile < tiles; tile += together) {
    kernel.multiply(given.matrix, input, out.data(), tile, std::min(tiles, tile + together), scratch);
  }
  std::free(values);
  std::free(scratch);
  return out;
}

void check_case(const Int8Kernel& kernel, Case& given) {
  const std::vector<float> out = product(kernel, given);
  const double tolerance = 2e-4 * std::sqrt(static_cast<double>(given.k));
  for (size_t row = 0; row < given.rows; ++row) {
    const std::vector<double> expected = given.expected(row);
    for (size_t i = 0; i < given.n; ++i) {
      const double got = out[row * given.n + i];
      if (!(std::fabs(got - expected[i]) <= tolerance + 1e-5 * std::fabs(expected[i]))) {
        std::printf("%s: N %zu K %zu rows %zu: output (%zu, %zu) is %g instead of %g\n", kernel.name, given.n, given.k,
                    given.rows, row, i, got, expected[i]);
        std::exit(1);
      }
    }
  }
  // What is not finite stays in its row, and is not finite there.
  const size_t row = given.rows - 1;
  given.x[row * given.k + given.k - 1] = given.rows % 2 == 0 ? std::numeric_limits<float>::infinity() : std::nanf("");
  const std::vector<float> spoilt = product(kernel, given);
  for (size_t i = 0; i < given.n; ++i) {
    if (std::isfinite(spoilt[row * given.n + i]) || (row > 0 && spoilt[i] != out[i])) {
      std::printf("%s: a value that is not finite gave %g, and %g in another row\n", kernel.name,
                  static_cast<double>(spoilt[row * given.n + i]), static_cast<double>(spoilt[i]));
      std::exit(1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 0);
  for (const char* name : {"amx", "avx512", "avxvnni", "avx2", "neon"}) {
    const Int8Kernel* kernel = int8_kernel(name);
    if (kernel == nullptr) continue;
    for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 32, 33, 40, 65, 530}) {
      const size_t outputs = rows > 100 ? 100 : 700;  // that they do not take minutes where a processor is emulated
      for (int i = 0; i < 3; ++i) {
        Case given(1 + random() % outputs, 1 + random() % 1600, rows, random() % 2 == 0, random);
        check_case(*kernel, given);
      }
    }
    // Where what is done part by part ends: of outputs, of K, of rows.
    for (const auto& [n, k, rows] : {Sizes{1, 1, 1}, {64, 704, 17}, {33, 1408, 300}, {32, 1472, 289}, {256, 64, 288}}) {
      Case given(n, k, rows, true, random);
      check_case(*kernel, given);
    }
    std::printf("%s\n", name);
  }
  return 0;
}
