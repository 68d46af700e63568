# Builds engines/c into libblip2rt and blip2rt-c, and installs them with headers, package files and nano.
include(GNUInstallDirs)
find_package(PkgConfig REQUIRED)
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(WEBP REQUIRED IMPORTED_TARGET libwebp libwebpdemux)

option(BLIP2RT_C_TESTS "Build the C library's test programs" OFF)

target_compile_definitions(blip2rt_core PRIVATE BLIP2RT_NO_ENVIRONMENT)

add_library(blip2rt_media STATIC
  engines/media/exif.cpp
  engines/media/image.cpp
  engines/media/jpeg.cpp
  engines/media/picture.cpp
  engines/media/png.cpp
  engines/media/webp.cpp)
target_link_libraries(blip2rt_media PUBLIC blip2rt_core PRIVATE JPEG::JPEG PNG::PNG PkgConfig::WEBP)
set_target_properties(blip2rt_media PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)

if(BLIP2RT_C_TESTS)
  add_executable(image_check tests/c/native/image_check.cpp)
  target_link_libraries(image_check PRIVATE blip2rt_media)
endif()
