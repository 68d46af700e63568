// Compares the encoder attention kernel of this processor with plain double arithmetic, on random images of awkward
// sizes: encoder_attention_check SEED
#include "check.h"
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
        qkv(check::normal_floats(positions * 3 * heads * width, random)),
        out(positions * heads * width, -1.0f) {
    const float scale = sharpness / std::sqrt(static_cast<float>(width));
    attention = {positions, heads, width, qkv.data(), scale, out.data()};
  }

  const float* at(size_t position, size_t part, size_t head) const {
    return &qkv[((position * 3 + part) * heads + head) * width];
  }

  // Returns the output of one query, and the largest value of the head in `largest`.
  std::vector<double> expected(size_t position, size_t head, double* largest) const {
    std::vector<double> scores(positions), result(width);
    for (size_t j = 0; j < positions; ++j) {
      for (size_t i = 0; i < width; ++i) {
        scores[j] += static_cast<double>(at(position, 0, head)[i]) * at(j, 1, head)[i];
      }
      scores[j] *= attention.scale;
    }
    const double highest = *std::max_element(scores.begin(), scores.end());
    double total = 0;
    for (auto& score : scores) total += score = std::exp(score - highest);
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
    const auto scratch = check::aligned_bytes(kernel.scratch_size(attention));
    for (size_t head = 0; head < heads; ++head) kernel.attend(attention, head, scratch.get());
  }
};

void check_case(const EncoderAttentionKernel& kernel, Case& c) {
  c.attend(kernel);
  const std::vector<float> out = c.out;
  for (size_t position = 0; position < c.positions; ++position) {
    for (size_t head = 0; head < c.heads; ++head) {
      double largest = 0;
      const std::vector<double> expected = c.expected(position, head, &largest);
      for (size_t i = 0; i < c.width; ++i) {
        const double got = out[(position * c.heads + head) * c.width + i];
        if (std::fabs(got - expected[i]) <= 0.01 * largest) continue;
        check::fail("%s: %zu positions, %zu heads, width %zu: (%zu, %zu, %zu) is %g instead of %g", kernel.name,
                    c.positions, c.heads, c.width, position, head, i, got, expected[i]);
      }
    }
  }
  // A non-finite query spoils its own output and nothing else.
  const size_t spoilt = c.positions - 1;
  c.qkv[spoilt * 3 * c.heads * c.width] = std::nanf("");
  c.attend(kernel);
  for (size_t i = 0; i < c.out.size(); ++i) {
    const bool is_spoilt = i / c.width == spoilt * c.heads;
    if (is_spoilt ? !std::isfinite(c.out[i]) : c.out[i] == out[i]) continue;
    check::fail("%s: a non-finite value gave %g at %zu", kernel.name, static_cast<double>(c.out[i]), i);
  }
}

void check_kernel(const EncoderAttentionKernel& kernel, std::mt19937& random) {
  for (size_t positions : {1, 2, 15, 16, 17, 31, 32, 33, 50, 64, 65, 257}) {
    for (size_t width : {8, 16, 30, 32, 64, 72, 88}) {
      Case c(positions, 1 + check::below(3, random), width, random() % 2 == 0 ? 1.0f : 20.0f, random);
      check_case(kernel, c);
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto find = [](std::string_view name) { return name == "amx" ? encoder_attention_kernel() : nullptr; };
  return check::check_kernels(argc, argv, find, check_kernel);
}
