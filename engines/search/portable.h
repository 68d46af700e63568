// Lets the search's source compile for CPUs and, by NVRTC, for GPUs. NVRTC has no standard headers, and compiles every
// function for the device (-default-device).
#pragma once

#ifdef __CUDACC_RTC__
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;
#else
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#endif

namespace blip2rt {

#ifndef __CUDACC_RTC__
using std::exp;
using std::isfinite;
using std::log;
using std::pow;
#endif

#ifdef __CUDACC_RTC__
inline float infinity() { return __int_as_float(0x7f800000); }
#else
constexpr float infinity() { return std::numeric_limits<float>::infinity(); }
#endif

inline float forbidden() { return -infinity(); }  // the score of a token that must not be chosen

constexpr int32_t kNoToken = 0x7fffffff;  // larger than any token

template <class T>
constexpr T larger_of(T a, T b) {
  return a < b ? b : a;
}

template <class T>
constexpr T smaller_of(T a, T b) {
  return b < a ? b : a;
}

}  // namespace blip2rt
