// Helpers of the kernels' check programs: random inputs, aligned memory, comparison, and a loop over the kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <vector>

namespace check {

// Prints a message and ends the program with a failure.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  std::exit(1);
}

inline size_t below(size_t end, std::mt19937& random) { return random() % end; }

inline std::vector<float> normal_floats(size_t count, std::mt19937& random, float mean = 0) {
  std::normal_distribution<float> normal(mean);
  std::vector<float> values(count);
  for (float& value : values) value = normal(random);
  return values;
}

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// Allocates memory that is 64-byte aligned, as kernels require it.
inline std::unique_ptr<uint8_t[], Free> aligned_bytes(size_t bytes) {
  return std::unique_ptr<uint8_t[], Free>(static_cast<uint8_t*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
}

// Compares every output (rows, N) of run(c), a matrix product, with c.expected(row). Then makes a value non-finite: the
// outputs of its row must be non-finite, and those of other rows unchanged.
template <class Case, class Run>
void check_product(const char* kernel, Case& c, const Run& run, double absolute, double relative) {
  const std::vector<float> out = run(c);
  for (size_t row = 0; row < c.rows; ++row) {
    const std::vector<double> expected = c.expected(row);
    for (size_t i = 0; i < c.n; ++i) {
      const double got = out[row * c.n + i];
      if (std::fabs(got - expected[i]) <= absolute + relative * std::fabs(expected[i])) continue;
      fail("%s: N %zu K %zu rows %zu: output (%zu, %zu) is %g instead of %g", kernel, c.n, c.k, c.rows, row, i, got,
           expected[i]);
    }
  }
  const size_t row = c.rows - 1;
  c.x[row * c.k + c.k - 1] = c.rows % 2 == 0 ? std::numeric_limits<float>::infinity() : std::nanf("");
  const std::vector<float> spoilt = run(c);
  for (size_t i = 0; i < c.n; ++i) {
    const float in_row = spoilt[row * c.n + i], elsewhere = spoilt[i];
    if (!std::isfinite(in_row) && (row == 0 || elsewhere == out[i])) continue;
    fail("%s: a non-finite value gave %g, and %g in another row", kernel, static_cast<double>(in_row),
         static_cast<double>(elsewhere));
  }
}

// Calls check(kernel, random) for each kernel that the processor supports, and prints its name. The program's argument
// is the seed.
template <class Find, class Check>
int check_kernels(int argc, char** argv, const Find& find, const Check& check) {
  for (const char* name : {"amx", "avx512", "avxvnni", "avx2", "sse41", "dotprod", "neon", "simd128", "plain"}) {
    const auto* kernel = find(name);
    if (kernel == nullptr) continue;
    std::mt19937 random(argc > 1 ? static_cast<unsigned>(std::strtoul(argv[1], nullptr, 10)) : 0);
    check(*kernel, random);
    std::printf("%s\n", name);
  }
  return 0;
}

}  // namespace check
