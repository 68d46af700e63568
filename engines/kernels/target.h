// Compiles the rest of a file for an instruction set: BLIP2RT_TARGET("avx2,fma") before its includes,
// BLIP2RT_TARGET_END at its end.
#pragma once

#define BLIP2RT_PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define BLIP2RT_TARGET(features) \
  BLIP2RT_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define BLIP2RT_TARGET_END BLIP2RT_PRAGMA(clang attribute pop)
#define BLIP2RT_TARGET_DOT_PRODUCT BLIP2RT_TARGET("dotprod")
#else
#define BLIP2RT_TARGET(features) BLIP2RT_PRAGMA(GCC target(features))
#define BLIP2RT_TARGET_END
#define BLIP2RT_TARGET_DOT_PRODUCT BLIP2RT_TARGET("arch=armv8.2-a+dotprod")
#endif
