// Every int4 kernel that this processor has, on random matrices of awkward sizes, against plain arithmetic in double.
//
//   int4_check SEED     prints the kernels that it ran; fails with the case that differs
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/int4/matmul.h"

namespace {

using namespace blip2rt;

float from_half(uint16_t half) {  // of finite positive ones
  return std::ldexp(static_cast<float>((half & 1023) | 1024), (half >> 10 & 31) - 25);
}

struct Case {
  size_t n, k, block, rows;
  std::vector<uint8_t> codes, zeros;
  std::vector<uint16_t> scales;
  std::vector<float> x;
  Int4Matrix matrix;

  Case(size_t n_, size_t k_, size_t block_, size_t rows_, bool greatest, std::mt19937& random)
      : n(n_), k(k_), block(block_), rows(rows_), matrix{n, k, block, nullptr, nullptr, nullptr} {
    const size_t blocks = matrix.blocks();
    codes.resize(n * blocks * block / 2);
    zeros.resize(n * ((blocks + 1) / 2));
    scales.resize(n * blocks);
    x.resize(rows * k);
    for (auto& code : codes) code = static_cast<uint8_t>(random());
    for (auto& zero : zeros) zero = static_cast<uint8_t>(random());
    for (auto& scale : scales) scale = static_cast<uint16_t>(8 << 10 | random() % (6 << 10));  // 2^-7 to 2^-1
    std::normal_distribution<float> normal;
    for (auto& value : x) value = normal(random);
    if (rows > 1) std::fill_n(x.begin(), std::min(k, block), 0.0f);  // a block of zeros
    if (greatest) {
      const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
      const float others = random() % 2 == 0 ? 1.0f : 32384.0f / 32512.0f;  // of 16 bits: 127 * 256 - 128
      std::fill(codes.begin(), codes.end(), 255);
      for (size_t i = 0; i < x.size(); ++i) x[i] = sign * (i % k % block == 0 ? 1.0f : others);
    }
    matrix = {n, k, block, codes.data(), scales.data(), zeros.data()};
  }

  // Every output of a row: what its activations, in so many steps to their largest, and the weights give, in double.
  std::vector<double> expected(size_t row, float levels) const {
    const size_t blocks = matrix.blocks();
    std::vector<int32_t> rounded(blocks * block);
    std::vector<double> steps(blocks), outputs(n);
    for (size_t b = 0; b < blocks; ++b) {
      const size_t first = b * block, end = std::min(k, first + block);
      float largest = 0;
      for (size_t i = first; i < end; ++i) largest = std::max(largest, std::fabs(x[row * k + i]));
      const float inverse = largest > 0 ? levels / largest : 0.0f;
      for (size_t i = first; i < end; ++i) {
        rounded[i] = static_cast<int32_t>(std::nearbyint(static_cast<double>(x[row * k + i] * inverse)));
      }
      steps[b] = largest / levels;
    }
    for (size_t output = 0; output < n; ++output) {
      const uint8_t* of_output = &codes[output * blocks * block / 2];
      for (size_t b = 0; b < blocks; ++b) {
        const int zero = zeros[output * ((blocks + 1) / 2) + b / 2] >> (b % 2 * 4) & 15;
        int32_t sum = 0;
        for (size_t i = b * block; i < (b + 1) * block; ++i) {
          sum += ((of_output[i / 2] >> (i % 2 * 4) & 15) - zero) * rounded[i];
        }
        outputs[output] += sum * static_cast<double>(from_half(scales[output * blocks + b])) * steps[b];
      }
    }
    return outputs;
  }
};

std::vector<float> product(const Int4Kernel& kernel, const Case& given, bool split) {
  std::vector<int8_t> values(Int4Input::plane_size(given.matrix, given.rows)), low(values.size());
  std::vector<float> scales(Int4Input::scales_size(given.matrix, given.rows)), sums(scales.size());
  std::vector<float> out(given.rows * given.n, -1.0f);
  const Int4Input input = {given.rows, values.data(), split ? low.data() : nullptr, scales.data(), sums.data()};
  for (size_t row = 0; row < given.rows; row += Int4Input::kQuantizeRows) {
    kernel.quantize(given.x.data(), row, std::min(Int4Input::kQuantizeRows, given.rows - row), given.matrix, input);
  }
  const size_t tiles = (given.n + kernel.tile - 1) / kernel.tile, half = tiles / 2;
  void* scratch = std::aligned_alloc(64, (kernel.scratch_size(given.matrix) + 63) / 64 * 64);
  kernel.multiply(given.matrix, input, out.data(), 0, half, static_cast<uint8_t*>(scratch));
  kernel.multiply(given.matrix, input, out.data(), half, tiles, static_cast<uint8_t*>(scratch));
  std::free(scratch);
  return out;
}

void check_case(const Int4Kernel& kernel, Case given, bool split) {
  const std::vector<float> out = product(kernel, given, split);
  const double tolerance = 1e-4 * std::sqrt(static_cast<double>(given.k));
  for (size_t row = 0; row < given.rows; ++row) {
    const std::vector<double> expected = given.expected(row, split ? 127.0f * 256.0f : 127.0f);
    for (size_t i = 0; i < given.n; ++i) {
      const double got = out[row * given.n + i];
      if (!(std::fabs(got - expected[i]) <= tolerance)) {
        std::printf("%s, %d bits: N %zu K %zu block %zu rows %zu: output (%zu, %zu) is %g instead of %g\n", kernel.name,
                    split ? 16 : 8, given.n, given.k, given.block, given.rows, row, i, got, expected[i]);
        std::exit(1);
      }
    }
  }
  // What is not finite stays in its row, and is not finite there.
  const size_t row = given.rows - 1;
  given.x[row * given.k + given.k - 1] = given.rows % 2 == 0 ? std::numeric_limits<float>::infinity() : std::nanf("");
  const std::vector<float> spoilt = product(kernel, given, split);
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
    const Int4Kernel* kernel = int4_kernel(name);
    if (kernel == nullptr) continue;
    for (size_t block : {32, 64, 128}) {
      for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 33, 145}) {
        for (bool greatest : {false, true}) {  // of codes and values: no sum may overflow
          const size_t k =
              1 + random() % 1300 + (random() % 2 == 0 ? 2048 : 0);  // long outputs have a way of their own
          const Case given(1 + random() % 70, k, block, rows, greatest, random);
          for (bool split : {false, true}) check_case(*kernel, given, split);
        }
      }
    }
    std::printf("%s\n", name);
  }
  return 0;
}
