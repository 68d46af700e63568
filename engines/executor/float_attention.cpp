// Attention between all positions of an image, in floats: a head's scores never leave the cache.
#include <algorithm>

#include "executor/operators.h"
#include "executor/vectors.h"
#include "ops/domain.h"

namespace blip2rt {
namespace {

struct FloatAttention {
  size_t positions, heads, width;
  float scale;

  // One head of an image. qkv (positions, 3, heads, width), out (positions, heads, width).
  void attend(const float* qkv, size_t head, float* out) const {
    constexpr size_t kRows = 24;  // queries at once
    const VectorLoops& loops = vector_loops();
    const size_t panel = loops.panel, row = 3 * heads * width;
    const size_t keys_padded = (positions + panel - 1) / panel * panel,
                 width_padded = (width + panel - 1) / panel * panel;
    thread_local Buffer scratch;
    float* keys = scratch.get<float>(keys_padded * width + positions * width_padded + kRows * keys_padded);
    float *values = keys + keys_padded * width, *scores = values + positions * width_padded;
    const float *query = qkv + head * width, *key = query + heads * width, *value = key + heads * width;
    pack(key, value, row, keys, values);
    for (size_t first = 0; first < positions; first += kRows) {
      const size_t rows = std::min(kRows, positions - first);
      for (size_t at = 0; at < keys_padded; at += panel) {
        loops.multiply(
            {query + first * row, row, rows, width, keys + at * width, panel, scores + at, keys_padded, panel});
      }
      for (size_t i = 0; i < rows; ++i) {
        float* of_row = scores + i * keys_padded;
        loops.binary(Binary::kMul, of_row, 1, &scale, 0, positions, of_row);
        loops.softmax(of_row, positions, of_row);
      }
      for (size_t at = 0; at < width; at += panel) {
        loops.multiply({scores, keys_padded, rows, positions, values + at * positions, panel,
                        out + (first * heads + head) * width + at, heads * width, std::min(panel, width - at)});
      }
    }
  }

 private:
  // Packs panels of keys as columns, (panels, width, panel), and of values as rows, (panels, positions, panel).
  void pack(const float* key, const float* value, size_t row, float* keys, float* values) const {
    const size_t panel = vector_loops().panel;
    for (size_t at = 0; at < positions; at += panel, keys += width * panel) {
      const size_t some = std::min(panel, positions - at);
      if (some < panel) std::fill_n(keys, width * panel, 0.0f);
      for (size_t j = 0; j < some; ++j) {
        for (size_t i = 0; i < width; ++i) keys[i * panel + j] = key[(at + j) * row + i];
      }
    }
    for (size_t at = 0; at < width; at += panel, values += positions * panel) {
      const size_t some = std::min(panel, width - at);
      if (some < panel) std::fill_n(values, positions * panel, 0.0f);
      for (size_t i = 0; i < positions; ++i) std::copy_n(value + i * row + at, some, values + i * panel);
    }
  }
};

Compute float_attention(const Node& node) {
  const auto size = [&](const char* name) { return static_cast<size_t>(node.number(name, 0)); };
  const FloatAttention attention = {size("positions"), size("num_heads"), size("width"), node.floats.at("scale")};
  const int64_t expected = node.number("images", -1);  // -1: any number
  return [=](NodeRun& run) {
    const TensorView qkv = run.floats(0);
    const size_t of_position = attention.heads * attention.width;
    require(qkv.rank == 3 && qkv.size(2) == 3 * of_position && qkv.size(0) * qkv.size(1) % attention.positions == 0,
            "the input does not fit the positions and heads");
    const size_t images = qkv.size(0) * qkv.size(1) / attention.positions, of_image = attention.positions * of_position;
    require(expected == -1 || images == static_cast<size_t>(expected), "the number of images is wrong");
    float* out = run.output(0, shaped(DType::kFloat32, {images, attention.positions, of_position})).as<float>();
    parallel_for(run, images * attention.heads, 1, [&](size_t part, size_t) {
      const size_t image = part / attention.heads;
      attention.attend(qkv.as<float>() + image * 3 * of_image, part % attention.heads, out + image * of_image);
    });
  };
}

}  // namespace

std::vector<OperatorKind> attention_kinds() { return {{kDomain, kFloatAttention, float_attention}}; }

}  // namespace blip2rt
