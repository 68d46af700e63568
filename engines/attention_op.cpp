// Our attention inside ONNX Runtime: its threads, its tensors, our arithmetic.
#include <algorithm>
#include <cmath>
#include <string>

#include "attention.h"
#include "own_op.h"
#include "own_ops.h"

namespace blip2rt {
namespace {

struct OwnAttention {
  enum Input : size_t { kQuery, kKey, kValue, kPastKey, kPastValue, kRows, kCos, kSin, kBias };
  static constexpr const char* kName = kOwnAttention;
  static constexpr DType kInputs[] = {DType::kFloat32, DType::kFloat32, DType::kFloat32,
                                      DType::kFloat32, DType::kFloat32, DType::kInt32,
                                      DType::kFloat32, DType::kFloat32, DType::kFloat32};
  static constexpr size_t kOutputs = 3;
  static bool optional(size_t index) { return index == kKey || index == kValue || index > kRows; }
  int64_t heads, kv_heads, window;
  float scale, softcap;

  explicit OwnAttention(const OrtKernelInfo* info)
      : heads(attribute(info, "num_heads")),
        kv_heads(attribute(info, "kv_num_heads")),
        window(attribute(info, "local_window_size")),
        scale(float_attribute(info, "scale")),
        softcap(float_attribute(info, "softcap")) {
    require(heads > 0 && kv_heads > 0 && heads % kv_heads == 0, "num_heads is no multiple of kv_num_heads");
  }

  static void require(bool holds, const char* what) {
    if (!holds) throw std::runtime_error(std::string("attention: ") + what);
  }

  void compute(OrtKernelContext* context) const {
    const Tensor query = input(context, kQuery), key = input(context, kKey), value = input(context, kValue);
    const Tensor past_key = input(context, kPastKey), past_value = input(context, kPastValue);
    const Tensor rows = input(context, kRows), bias = input(context, kBias);
    const Tensor cos = input(context, kCos), sin = input(context, kSin);
    require(query.rank == 3 && past_key.rank == 4 && past_value.rank == 4,
            "query or past has the wrong number of axes");
    const int64_t width = past_key.axes[3], of_queries = heads * width, of_keys = kv_heads * width;
    require(past_key.axes[0] == query.axes[0] && past_key.axes[1] == kv_heads &&
                std::equal(past_key.axes, past_key.axes + 4, past_value.axes),
            "past has the wrong shape");
    require(width % static_cast<int64_t>(Attention::kUnit) == 0, "heads are no multiple of 8 wide");
    require(query.axes[2] == of_queries + (key ? 0 : 2 * of_keys), "query has the wrong width");
    require(!key || (key.rank == 3 && key.axes[2] == of_keys && value.rank == 3 && value.axes[2] == of_keys),
            "key or value has the wrong width");
    require(rows.rank == 2 && rows.axes[0] == query.axes[0] && rows.axes[1] == 4, "cache_rows is not (B, 4)");

    Attention a = {};
    a.rows = static_cast<size_t>(query.axes[0]);
    a.length = static_cast<size_t>(query.axes[1]);
    a.heads = static_cast<size_t>(heads);
    a.kv_heads = static_cast<size_t>(kv_heads);
    a.width = static_cast<size_t>(width);
    a.query_step = static_cast<size_t>(query.axes[2]);
    a.key_step = key ? static_cast<size_t>(of_keys) : a.query_step;
    a.query = query.as<float>();
    a.key = key ? key.as<float>() : a.query + of_queries;
    a.value = key ? value.as<float>() : a.query + of_queries + of_keys;
    a.capacity = static_cast<size_t>(past_key.axes[2]);
    a.where = rows.as<CacheRow>();
    a.scale = scale == 0 ? 1.0f / std::sqrt(static_cast<float>(width)) : scale;
    a.softcap = softcap;
    a.window = window < 0 ? 0 : static_cast<size_t>(window);
    if (cos) {
      a.rotated = static_cast<size_t>(2 * cos.axes[1]);
      a.cos = cos.as<float>();
      a.sin = sin.as<float>();
      require(a.rotated <= a.width, "what rotates is wider than a head");
    }
    const int64_t out_axes[] = {query.axes[0], query.axes[1], of_queries};
    a.out = output(context, 0, out_axes, 3);
    a.keys = output(context, 1, past_key.axes, past_key.rank);
    a.values = output(context, 2, past_value.axes, past_value.rank);
    require(a.keys == past_key.data && a.values == past_value.data, "present is not past");
    if (a.rows == 0 || a.length == 0) return;
    check_rows(a, cos ? cos.axes[0] : 0);
    if (bias) set_bias(a, bias);
    run(context, a);
  }

  static void check_rows(const Attention& a, int64_t positions) {
    for (size_t row = 0; row < a.rows; ++row) {
      const CacheRow& where = a.where[row];
      const size_t end = static_cast<size_t>(where.start) + static_cast<size_t>(where.before) + a.length;
      require(where.prompt_row >= 0 && where.prompt_length >= 0 && where.start >= 0 && where.before >= 0 &&
                  static_cast<size_t>(where.prompt_length) <= a.capacity && end <= a.capacity,
              "cache_rows points outside the cache");
      require(a.rotated == 0 || a.seen(row, a.length - 1) <= static_cast<size_t>(positions),
              "a position is beyond the table of rotations");
    }
  }

  static void set_bias(Attention& a, const Tensor& bias) {
    require(bias.rank == 4 && (bias.axes[0] == 1 || bias.axes[0] == static_cast<int64_t>(a.rows)) &&
                (bias.axes[1] == 1 || bias.axes[1] == static_cast<int64_t>(a.heads)) &&
                bias.axes[2] == static_cast<int64_t>(a.length),
            "attention_bias has the wrong shape");
    a.bias = bias.as<float>();
    a.bias_width = static_cast<size_t>(bias.axes[3]);
    const size_t head_step = a.length * a.bias_width;
    a.bias_head_step = bias.axes[1] == 1 ? 0 : head_step;
    a.bias_row_step = bias.axes[0] == 1 ? 0 : static_cast<size_t>(bias.axes[1]) * head_step;
    for (size_t row = 0; row < a.rows; ++row) {
      require(a.seen(row, a.length - 1) <= a.bias_width, "attention_bias is shorter than what is seen");
    }
  }

  static void run(OrtKernelContext* context, const Attention& a) {
    const AttentionKernel& kernel = attention_kernel();
    const size_t blocks = (a.rows * a.length * a.group() + kQueryBlock - 1) / kQueryBlock;
    size_t longest = 0;
    for (size_t row = 0; row < a.rows; ++row) longest = std::max(longest, a.seen(row, a.length - 1));
    // A part is worth a thread from some ten thousand products on.
    constexpr size_t kPart = 32 * 1024;
    const size_t work = kQueryBlock * longest * a.width,
                 at_once = std::max<size_t>(1, kPart / std::max<size_t>(1, work));
    const size_t heads_at_once = std::max<size_t>(1, kPart / (a.length * a.width));
    in_parts(context, a.rows * a.kv_heads, heads_at_once, [&](size_t first, size_t last) {
      for (size_t i = first; i < last; ++i) kernel.append(a, i % a.rows, i / a.rows);
    });
    in_parts(context, a.kv_heads * blocks, at_once, [&](size_t first, size_t last) {
      thread_local Buffer scratch;
      float* memory = scratch.get<float>(AttentionKernel::scratch_floats(a));
      for (size_t i = first; i < last; ++i) kernel.attend(a, i / blocks, i % blocks, memory);
    });
  }
};

}  // namespace

void add_own_attention(OrtCustomOpDomain* domain) {
  check(ort().CustomOpDomain_Add(domain, custom_op<OwnAttention>()));
}

}  // namespace blip2rt
