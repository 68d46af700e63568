# Builds engines/c into libblip2rt and blip2rt-c, and installs them with headers, package files and nano.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
enable_language(C)
find_package(PkgConfig REQUIRED)
find_package(JPEG REQUIRED)
find_package(PNG REQUIRED)
find_package(Threads REQUIRED)
pkg_check_modules(WEBP REQUIRED IMPORTED_TARGET libwebp libwebpdemux)

option(BLIP2RT_C_TESTS "Build the C library's test programs" OFF)
option(BLIP2RT_STATIC "Build blip2rt-c alone, as a static program" OFF)

set(BLIP2RT_ABI 1)  # BLIP2RT_ABI_VERSION in the header
file(STRINGS blip2rt/version.py line REGEX "^__version__")
string(REGEX REPLACE ".*\"([0-9]+.[0-9]+.[0-9]+).*" "\\1" BLIP2RT_VERSION "${line}")
set(code "${CMAKE_INSTALL_FULL_LIBDIR}")
if(WIN32 OR BLIP2RT_STATIC)
  set(code "${CMAKE_INSTALL_FULL_BINDIR}")
endif()
file(RELATIVE_PATH nano "${code}" "${CMAKE_INSTALL_FULL_DATADIR}/blip2rt/nano")

add_library(blip2rt_media STATIC
  engines/media/exif.cpp
  engines/media/image.cpp
  engines/media/jpeg.cpp
  engines/media/picture.cpp
  engines/media/png.cpp
  engines/media/webp.cpp)
target_link_libraries(blip2rt_media PUBLIC blip2rt_core PRIVATE JPEG::JPEG PNG::PNG PkgConfig::WEBP)
set_target_properties(blip2rt_media PROPERTIES POSITION_INDEPENDENT_CODE ON)

if(NOT BLIP2RT_STATIC)
  set(BUILD_SHARED_LIBS ON)
endif()
add_library(blip2rt
  engines/c/blip2rt.cpp
  engines/c/runtime.cpp
  engines/runtime/language_model.cpp
  engines/runtime/model.cpp)
target_include_directories(blip2rt PUBLIC
  $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/engines/c/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
target_compile_definitions(blip2rt PRIVATE
  BLIP2RT_BUILD $<$<BOOL:${BLIP2RT_STATIC}>:BLIP2RT_STATIC> BLIP2RT_VERSION="${BLIP2RT_VERSION}" BLIP2RT_NANO="${nano}")
target_link_libraries(blip2rt PRIVATE blip2rt_media ${CMAKE_DL_LIBS} Threads::Threads)
if(BUILD_SHARED_LIBS AND NOT WIN32)  # Windows exports what the header says
  target_link_options(blip2rt PRIVATE "-Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/engines/c/symbols.map"
    -Wl,--no-undefined -Wl,--gc-sections)
endif()
set_target_properties(blip2rt PROPERTIES VERSION ${BLIP2RT_VERSION} SOVERSION ${BLIP2RT_ABI} INSTALL_RPATH "\$ORIGIN")
# Pixels are normalised as numpy does it: without fused products.
set_source_files_properties(engines/runtime/model.cpp PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")

if(WIN32)
  set_target_properties(blip2rt PROPERTIES PREFIX "")
endif()

add_executable(blip2rt-c engines/c/program.c)
target_link_libraries(blip2rt-c PRIVATE blip2rt $<$<BOOL:${BLIP2RT_STATIC}>:-static>)
file(RELATIVE_PATH from_program "${CMAKE_INSTALL_FULL_BINDIR}" "${CMAKE_INSTALL_FULL_LIBDIR}")
set_target_properties(blip2rt-c PROPERTIES C_STANDARD 99 C_EXTENSIONS OFF INSTALL_RPATH "\$ORIGIN/${from_program}")
target_compile_options(blip2rt-c PRIVATE -Wall -Wextra -pedantic)

foreach(target blip2rt_media blip2rt)
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_compile_options(${target} PRIVATE -Wall -Wextra $<$<BOOL:${BLIP2RT_WERROR}>:-Werror>)
endforeach()

install(DIRECTORY blip2rt/models/nano/ DESTINATION ${CMAKE_INSTALL_DATADIR}/blip2rt/nano)
if(BLIP2RT_STATIC)
  install(TARGETS blip2rt-c)
  return()
endif()
install(TARGETS blip2rt blip2rt-c EXPORT blip2rt)
install(FILES engines/c/include/blip2rt.h engines/c/include/blip2rt.hpp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT blip2rt NAMESPACE blip2rt:: FILE blip2rtConfig.cmake DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/blip2rt)
write_basic_package_version_file(blip2rtConfigVersion.cmake VERSION ${BLIP2RT_VERSION} COMPATIBILITY SameMajorVersion)
file(RELATIVE_PATH to_prefix "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
configure_file(engines/c/blip2rt.pc.in blip2rt.pc @ONLY)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/blip2rtConfigVersion.cmake"
  DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/blip2rt)
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/blip2rt.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(BLIP2RT_C_TESTS)
  add_executable(image_check tests/c/native/image_check.cpp)
  target_link_libraries(image_check PRIVATE blip2rt_media)
  add_executable(all_calls tests/c/native/all_calls.c)
  target_link_libraries(all_calls PRIVATE blip2rt Threads::Threads)
endif()
