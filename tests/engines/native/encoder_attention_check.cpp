// The encoder's attention that this processor has, on random images of awkward sizes, against plain arithmetic in
// double.
//
//   encoder_attention_check SEED     prints the kernel that it ran; fails with the case that differs
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "kernels/attention/encoder_attention.h"

namespace {

using namespace blip2rt;

struct Case {
  size_t positions, heads, width;
  std::vector<float> qkv, out;
  EncoderAttention attention;

  Case(size_t positions_, size_t heads_, size_t width_, float sharpness, std::mt19937& random)
      : positions(positions_),
        heads(heads_),
        width(width_),
        qkv(positions * 3 * heads * width),
        out(positions * heads * width, -1.0f),
        attention{} {
    std::normal_distribution<float> normal;
    for (auto& value : qkv) value = normal(random);
    const float scale = sharpness / std::sqrt(static_cast<float>(width));
    attention = {positions, heads, width, qkv.data(), scale, out.data()};
  }

  const float* at(size_t position, size_t part, size_t head) const {
    return &qkv[((position * 3 + part) * heads + head) * width];
  }

  // The answer for one query, and the largest value of the head.
  std::vector<double> expected(size_t position, size_t head, double* largest) const {
    std::vector<double> scores(positions), result(width);
    for (size_t j = 0; j < positions; ++j) {
      for (size_t i = 0; i < width; ++i) {
        scores[j] += static_cast<double>(at(position, 0, head)[i]) * at(j, 1, head)[i];
      }
      scores[j] *= attention.scale;
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (auto& score : scores) total += score = std::exp(score - most);
    *largest = 0;
    for (size_t j = 0; j < positions; ++j) {
      for (size_t i = 0; i < width; ++i) {
        const double value = at(j, 2, head)[i];
        result[i] += scores[j] / total * value;
        *largest = std::max(*largest, std::fabs(value));
      }
    }
    return result;
  }

  void attend(const EncoderAttentionKernel& kernel) {
    void* scratch = std::aligned_alloc(64, kernel.scratch_size(attention));
    for (size_t head = 0; head < heads; ++head) kernel.attend(attention, head, static_cast<uint8_t*>(scratch));
    std::free(scratch);
  }
};

void check_case(const EncoderAttentionKernel& kernel, Case& given) {
  given.attend(kernel);
  const std::vector<float> out = given.out;
  for (size_t position = 0; position < given.positions; ++position) {
    for (size_t head = 0; head < given.heads; ++head) {
      double largest = 0;
      const std::vector<double> expected = given.expected(position, head, &largest);
      for (size_t i = 0; i < given.width; ++i) {
        const double got = out[(position * given.heads + head) * given.width + i];
        if (!(std::fabs(got - expected[i]) <= 0.01 * largest)) {
          std::printf("%s: %zu positions, %zu heads, width %zu: (%zu, %zu, %zu) is %g instead of %g\n", kernel.name,
                      given.positions, given.heads, given.width, position, head, i, got, expected[i]);
          std::exit(1);
        }
      }
    }
  }
  // A query that is not finite spoils what it asks for, and nothing else.
  const size_t spoilt = given.positions - 1;
  given.qkv[spoilt * 3 * given.heads * given.width] = std::nanf("");
  given.attend(kernel);
  for (size_t i = 0; i < given.out.size(); ++i) {
    const bool is_spoilt = i / given.width == spoilt * given.heads;
    if (is_spoilt ? std::isfinite(given.out[i]) : given.out[i] != out[i]) {
      std::printf("%s: a value that is not finite gave %g at %zu\n", kernel.name, static_cast<double>(given.out[i]), i);
      std::exit(1);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::mt19937 random(argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : 0);
  const EncoderAttentionKernel* kernel = encoder_attention_kernel();
  if (kernel == nullptr) return 0;
  for (size_t positions : {1, 2, 15, 16, 17, 31, 32, 33, 50, 64, 65, 257}) {
    for (size_t width : {8, 16, 30, 32, 64, 72, 88}) {
      Case given(positions, 1 + random() % 3, width, random() % 2 == 0 ? 1.0f : 20.0f, random);
      check_case(*kernel, given);
    }
  }
  std::printf("%s\n", kernel->name);
  return 0;
}
