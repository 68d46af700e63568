// Compares every int4 kernel that this processor supports with plain double arithmetic, on random matrices of awkward
// sizes: int4_check SEED
#include "check.h"
#include "kernels/int4/matmul.h"

namespace {

using namespace blip2rt;

float from_half(uint16_t half) {  // finite and positive
  return std::ldexp(static_cast<float>((half & 1023) | 1024), (half >> 10 & 31) - 25);
}

struct Case {
  size_t n, k, block, rows;
  bool split = false;  // 16-bit activations
  std::vector<uint8_t> codes, zeros;
  std::vector<uint16_t> scales;
  std::vector<float> x;
  Int4Matrix matrix;

  // extreme: the largest codes and values, for which no sum may overflow.
  Case(size_t n_, size_t k_, size_t block_, size_t rows_, bool extreme, std::mt19937& random)
      : n(n_), k(k_), block(block_), rows(rows_), x(check::normal_floats(rows * k, random)), matrix{} {
    const size_t blocks = (k + block - 1) / block;
    codes.resize(n * blocks * block / 2);
    zeros.resize(n * ((blocks + 1) / 2));
    scales.resize(n * blocks);
    for (auto& code : codes) code = static_cast<uint8_t>(random());
    for (auto& zero : zeros) zero = static_cast<uint8_t>(random());
    for (auto& scale : scales) scale = static_cast<uint16_t>(8 << 10 | random() % (6 << 10));  // 2^-7 to 2^-1
    if (rows > 1) std::fill_n(x.begin(), std::min(k, block), 0.0f);
    if (extreme) {
      const float sign = random() % 2 == 0 ? 1.0f : -1.0f;
      const float others = random() % 2 == 0 ? 1.0f : 32384.0f / 32512.0f;  // with 16 bits: 127 * 256 - 128
      std::fill(codes.begin(), codes.end(), 255);
      for (size_t i = 0; i < x.size(); ++i) x[i] = sign * (i % k % block == 0 ? 1.0f : others);
    }
    matrix = {n, k, block, codes.data(), scales.data(), zeros.data()};
  }

  // Returns the outputs of a row of quantized activations.
  std::vector<double> expected(size_t row) const {
    const size_t blocks = matrix.blocks();
    const float levels = split ? 127.0f * 256.0f : 127.0f;
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
      const uint8_t* output_codes = &codes[output * blocks * block / 2];
      for (size_t b = 0; b < blocks; ++b) {
        const int zero = zeros[output * ((blocks + 1) / 2) + b / 2] >> (b % 2 * 4) & 15;
        int32_t sum = 0;
        for (size_t i = b * block; i < (b + 1) * block; ++i) {
          sum += ((output_codes[i / 2] >> (i % 2 * 4) & 15) - zero) * rounded[i];
        }
        outputs[output] += sum * static_cast<double>(from_half(scales[output * blocks + b])) * steps[b];
      }
    }
    return outputs;
  }
};

std::vector<float> multiply(const Int4Kernel& kernel, const Case& c) {
  std::vector<int8_t> values(kernel.value_copies * Int4Input::plane_size(c.matrix, c.rows)), low(values.size());
  std::vector<float> scales(Int4Input::scales_size(c.matrix, c.rows)), sums(scales.size());
  std::vector<float> out(c.rows * c.n, -1.0f);
  const Int4Input input = {c.rows, values.data(), c.split ? low.data() : nullptr, scales.data(), sums.data()};
  for (size_t row = 0; row < c.rows; row += Int4Input::kQuantizeRows) {
    kernel.quantize(c.x.data(), row, std::min(Int4Input::kQuantizeRows, c.rows - row), c.matrix, input);
  }
  const size_t tiles = (c.n + kernel.tile - 1) / kernel.tile, half = tiles / 2;
  const auto scratch = check::aligned_bytes(kernel.scratch_size(c.matrix));
  kernel.multiply(c.matrix, input, out.data(), 0, half, scratch.get());
  kernel.multiply(c.matrix, input, out.data(), half, tiles, scratch.get());
  return out;
}

void check_kernel(const Int4Kernel& kernel, std::mt19937& random) {
  for (size_t block : {32, 64, 128}) {
    for (size_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 33, 145}) {
      for (bool extreme : {false, true}) {
        const size_t k = 1 + random() % 1300 + (random() % 2 == 0 ? 2048 : 0);  // long outputs have their own code
        const Case original(1 + random() % 70, k, block, rows, extreme, random);
        for (bool split : {false, true}) {
          Case c = original;
          c.split = split;
          const auto run = [&](const Case& each) { return multiply(kernel, each); };
          check::check_product(kernel.name, c, run, 1e-4 * std::sqrt(static_cast<double>(k)), 0);
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) { return check::check_kernels(argc, argv, int4_kernel, check_kernel); }
