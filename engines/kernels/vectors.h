// Vectors in the compiler's own operations, which the kernels of all instruction sets share. Include it after
// BLIP2RT_TARGET. Everything has internal linkage, because each including file compiles it for another processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__clang__) || __GNUC__ >= 12
#define BLIP2RT_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define BLIP2RT_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, blip2rt::FourLanes::Ints{__VA_ARGS__})
#endif

namespace blip2rt {
namespace {

// Vectors of 32-bit lanes. Lanes has their types, of which Ints may be declared with other lanes.
template <class Lanes>
struct Vectors : Lanes {
  using typename Lanes::Floats;
  using typename Lanes::Ints;
  static constexpr size_t kLanes = sizeof(Ints) / sizeof(int32_t);
  typedef int32_t Numbers __attribute__((vector_size(sizeof(Ints))));
  typedef uint32_t Words __attribute__((vector_size(sizeof(Ints))));
  typedef uint8_t Bytes __attribute__((vector_size(sizeof(Ints))));

  static Ints load(const void* from) {
    Ints to;
    std::memcpy(&to, from, sizeof to);
    return to;
  }
  static Floats load_floats(const float* from) { return reinterpret_cast<Floats>(load(from)); }
  static void store(uint8_t* to, Ints value) { std::memcpy(to, &value, sizeof value); }
  static void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }
  static Ints broadcast(int32_t value) { return reinterpret_cast<Ints>(value + Numbers{}); }
  static Floats broadcast(float value) { return value - Floats{}; }
  static Floats to_float(Ints value) { return __builtin_convertvector(reinterpret_cast<Numbers>(value), Floats); }
};

struct FourLanes {
  typedef int32_t Ints __attribute__((vector_size(16)));
  typedef float Floats __attribute__((vector_size(16)));

  // Rounds numbers below 2^22 to integers: adding 1.5 * 2^23 leaves them in the lowest bits. SIMD128 converts slowly.
  static Ints nearest(Floats x) { return reinterpret_cast<Ints>(x + 12582912.0f) - 0x4b400000; }

  // Transposes 4 rows of 16 bytes: vector to[j] gets bytes 4j to 4j + 3 of each row.
  static void transpose(const uint8_t* base, size_t stride, Ints* to) {
    Ints rows[4];
    for (size_t r = 0; r < 4; ++r) std::memcpy(&rows[r], base + r * stride, sizeof rows[r]);
    const auto a = BLIP2RT_SHUFFLE(rows[0], rows[1], 0, 4, 1, 5), b = BLIP2RT_SHUFFLE(rows[2], rows[3], 0, 4, 1, 5);
    const auto c = BLIP2RT_SHUFFLE(rows[0], rows[1], 2, 6, 3, 7), d = BLIP2RT_SHUFFLE(rows[2], rows[3], 2, 6, 3, 7);
    to[0] = BLIP2RT_SHUFFLE(a, b, 0, 1, 4, 5);
    to[1] = BLIP2RT_SHUFFLE(a, b, 2, 3, 6, 7);
    to[2] = BLIP2RT_SHUFFLE(c, d, 0, 1, 4, 5);
    to[3] = BLIP2RT_SHUFFLE(c, d, 2, 3, 6, 7);
  }
};

}  // namespace
}  // namespace blip2rt
