// Compares every attention kernel that this processor supports with plain double arithmetic, on random caches of
// awkward sizes: attention_check SEED [CASES]
#include <numeric>

#include "check.h"
#include "kernels/attention/attention.h"

namespace {

using namespace blip2rt;

struct Case {
  std::mt19937& random;
  Attention a = {};
  size_t cache_rows;
  std::vector<CacheRow> where;
  std::vector<float> x, keys, values, cos, sin, bias, out;

  size_t below(size_t end) { return check::below(end, random); }
  std::vector<float> numbers(size_t count) { return check::normal_floats(count, random); }

  explicit Case(std::mt19937& random_) : random(random_) {
    a.rows = 1 + below(6);
    const bool one_request = below(4) == 0;  // the positions of a prompt are separate rows
    a.length = !one_request && below(3) == 0 ? 1 + below(9) : 1;
    a.kv_heads = 1 + below(3);
    a.heads = a.kv_heads * (1 + below(3));
    a.width = 8 * (1 + below(6));
    const size_t of_queries = a.heads * a.width, of_keys = a.kv_heads * a.width, most = 1 + below(70);
    const size_t step = of_queries + 2 * of_keys;
    a.query_strides = a.key_strides = {a.length * step, step, a.width};
    a.out_strides = {a.length * of_queries, of_queries, a.width};
    cache_rows = a.rows + below(3);
    const size_t longest = below(most), start = longest + below(3), before = below(20);
    a.capacity = start + before + a.length + below(3);
    const bool one_prompt = below(2) == 0;
    std::vector<size_t> own(cache_rows);  // rows of the batch use any rows of the cache
    std::iota(own.begin(), own.end(), 0);
    std::shuffle(own.begin(), own.end(), random);
    const auto place = [this](size_t row, size_t position) {
      return static_cast<int32_t>(row * a.kv_heads * a.capacity + position);
    };
    for (size_t row = 0; row < a.rows; ++row) {
      const size_t of = one_prompt ? cache_rows - 1 : below(cache_rows);
      const size_t length = one_prompt ? longest : below(longest + 1);
      where.push_back({place(of, below(longest - length + 1)), static_cast<int32_t>(length), place(own[row], start),
                       static_cast<int32_t>(below(before + 1))});
    }
    for (size_t row = 1; one_request && row < a.rows; ++row) {
      where[row] = where[row - 1];
      if (++where[row].past_length > static_cast<int32_t>(before)) a.rows = row;
    }
    a.cache_rows = where.data();
    x = numbers(a.rows * a.length * step);
    a.query = x.data();
    a.key = a.query + of_queries;
    a.value = a.key + of_keys;
    if (below(4) == 0) a.key = a.value = nullptr;  // cross-attention
    for (CacheRow& row : where) row.prompt_length += a.key == nullptr && row.prompt_length == 0 ? 1 : 0;
    keys = numbers(cache_rows * of_keys * a.capacity);
    values = numbers(cache_rows * of_keys * a.capacity);
    a.keys = keys.data();
    a.values = values.data();
    out.assign(a.rows * a.length * of_queries, std::nanf(""));
    a.out = out.data();
    a.scale = below(2) == 0 ? 1.0f / std::sqrt(static_cast<float>(a.width)) : 1.0f;
    if (below(3) == 0) a.softcap = 5;
    if (below(3) == 0) a.window = 1 + below(most);
    size_t visible = 0;
    for (size_t row = 0; row < a.rows; ++row) visible = std::max(visible, a.visible(row, a.length - 1));
    if (below(2) == 0) {
      a.rotary_dims = 2 * (1 + below(a.width / 2));
      cos = numbers(visible * a.rotary_dims / 2);
      sin = numbers(visible * a.rotary_dims / 2);
      a.cos = cos.data();
      a.sin = sin.data();
    }
    if (below(3) == 0) {
      const bool each_row = below(2) == 0, each_head = below(2) == 0;
      const size_t width = visible + below(3), of_head = a.length * width;
      a.bias_strides = {each_row ? (each_head ? a.heads : 1) * of_head : 0, width, each_head ? of_head : 0};
      bias = numbers(a.rows * a.heads * of_head);
      a.bias = bias.data();
    }
  }

  // One head of a position: rotary_dims by it, or as it is.
  std::vector<double> rotated(const float* from, size_t position, bool rotates) const {
    std::vector<double> to(from, from + a.width);
    const size_t half = rotates ? a.rotary_dims / 2 : 0;
    for (size_t i = 0; i < half; ++i) {
      const double c = cos[position * half + i], s = sin[position * half + i];
      to[i] = from[i] * c - from[half + i] * s;
      to[half + i] = from[half + i] * c + from[i] * s;
    }
    return to;
  }

  // Returns key or value `n` of the positions that a row attends to.
  std::vector<double> attended(size_t row, size_t kv_head, size_t n, bool is_key) const {
    const CacheRow& w = where[row];
    const size_t prompt = static_cast<size_t>(w.prompt_length);
    const size_t old = a.key == nullptr ? prompt : prompt + static_cast<size_t>(w.past_length);
    if (n >= old) {
      const float* from = (is_key ? a.key : a.value) + a.key_strides.at(row, n - old, kv_head);
      return rotated(from, n, is_key);
    }
    const size_t at = static_cast<size_t>(n < prompt ? w.prompt_start : w.past_start) + n - (n < prompt ? 0 : prompt);
    // An earlier row may write it in the same run.
    for (size_t other = 0; other < row && a.key != nullptr; ++other) {
      const size_t written =
          static_cast<size_t>(where[other].past_start) + static_cast<size_t>(where[other].past_length);
      if (at < written || at >= written + a.length) continue;
      const float* from = (is_key ? a.key : a.value) + a.key_strides.at(other, at - written, kv_head);
      return rotated(from, n, is_key);
    }
    const std::vector<float>& cache = is_key ? keys : values;
    return rotated(cache.data() + (kv_head * a.capacity + at) * a.width, 0, false);
  }

  std::vector<double> expected(size_t row, size_t head, size_t position) const {
    const size_t kv_head = head / a.group_size(), end = a.visible(row, position),
                 first = a.first_visible(row, position);
    const float* query_at = a.query + a.query_strides.at(row, position, head);
    const std::vector<double> query = rotated(query_at, end - 1, true);
    std::vector<double> weights, mean(a.width);
    double total = 0;
    for (size_t n = first; n < end; ++n) {
      const std::vector<double> key = attended(row, kv_head, n, true);
      double score = 0;
      for (size_t i = 0; i < a.width; ++i) score += query[i] * key[i] * static_cast<double>(a.scale);
      if (a.softcap != 0) score = static_cast<double>(a.softcap) * std::tanh(score / static_cast<double>(a.softcap));
      if (a.bias != nullptr) score += a.bias[a.bias_strides.at(row, position, head) + n];
      weights.push_back(std::exp(score));
      total += weights.back();
    }
    for (size_t n = first; n < end; ++n) {
      const std::vector<double> value = attended(row, kv_head, n, false);
      for (size_t i = 0; i < a.width; ++i) mean[i] += weights[n - first] / total * value[i];
    }
    return mean;
  }
};

void check_case(const AttentionKernel& kernel, Case& c) {
  Attention& a = c.a;
  std::vector<std::vector<double>> expected;
  for (size_t row = 0; row < a.rows; ++row) {
    for (size_t position = 0; position < a.length; ++position) {
      for (size_t head = 0; head < a.heads; ++head) expected.push_back(c.expected(row, head, position));
    }
  }
  for (size_t row = 0; row < a.rows; ++row) {
    for (size_t head = 0; head < a.kv_heads && a.key != nullptr; ++head) kernel.append(a, row, head);
  }
  const size_t floats = AttentionKernel::scratch_floats(a);
  std::vector<float> scratch(floats);
  const size_t blocks = (a.rows * a.length * a.group_size() + kQueryBlock - 1) / kQueryBlock;
  for (size_t head = 0; head < a.kv_heads; ++head) {
    for (size_t block = 0; block < blocks; ++block) kernel.attend(a, head, block, scratch.data());
  }
  for (size_t i = 0; i < expected.size(); ++i) {
    for (size_t j = 0; j < a.width; ++j) {
      const double got = c.out[i * a.width + j], want = expected[i][j];
      if (std::fabs(got - want) <= 2e-5 * (1 + std::fabs(want))) continue;
      check::fail(
          "%s: rows %zu length %zu heads %zu of %zu width %zu window %zu rotary %zu softcap %g: (%zu, %zu) is %g "
          "instead "
          "of %g",
          kernel.name, a.rows, a.length, a.heads, a.kv_heads, a.width, a.window, a.rotary_dims,
          static_cast<double>(a.softcap), i, j, got, want);
    }
  }
}

int cases = 400;

void check_kernel(const AttentionKernel& kernel, std::mt19937& random) {
  for (int i = 0; i < cases; ++i) {
    Case c(random);
    check_case(kernel, c);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 2) cases = std::atoi(argv[2]);
  return check::check_kernels(argc, argv, attention_kernel, check_kernel);
}
