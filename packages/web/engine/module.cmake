# Builds engines/c into WebAssembly modules for web pages, workers and Node: blip2rt.js, and blip2rt-threads.js for pages
# that are cross-origin isolated.
file(STRINGS blip2rt/version.py line REGEX "^__version__")
string(REGEX REPLACE ".*\"([0-9]+.[0-9]+.[0-9]+).*" "\\1" BLIP2RT_VERSION "${line}")

set_target_properties(blip2rt_core PROPERTIES POSITION_INDEPENDENT_CODE OFF)
get_target_property(sources blip2rt_core SOURCES)
list(FILTER sources INCLUDE REGEX "kernels/|executor/(float|products|vectors)|search/s|sha256")
set_property(SOURCE ${sources} APPEND PROPERTY COMPILE_OPTIONS -O3)
add_library(blip2rt_web OBJECT
  engines/c/blip2rt.cpp
  engines/c/runtime.cpp
  engines/media/exif.cpp
  engines/media/image.cpp
  engines/media/picture.cpp
  engines/runtime/language_model.cpp
  engines/runtime/model.cpp
  packages/web/engine/callback.cpp)
target_include_directories(blip2rt_web PRIVATE engines/c/include)
target_compile_definitions(blip2rt_web PRIVATE BLIP2RT_STATIC BLIP2RT_VERSION="${BLIP2RT_VERSION}" BLIP2RT_NANO="nano")
target_link_libraries(blip2rt_web PUBLIC blip2rt_core)
# Pixels are normalised as numpy does it: without fused products.
set_source_files_properties(engines/runtime/model.cpp PROPERTIES COMPILE_OPTIONS "-ffp-contract=off")

file(STRINGS tests/c/symbols.txt symbols REGEX "^blip2rt_")
list(TRANSFORM symbols REPLACE "@.*" "")
list(TRANSFORM symbols PREPEND "_")
list(APPEND symbols _malloc _free _web_file _web_remove _web_callback)
list(JOIN symbols "," symbols)
set(methods UTF8ToString stringToUTF8 lengthBytesUTF8 wasmMemory)
list(JOIN methods "," methods)
set(thread_local_sources engines/executor/float_attention.cpp engines/executor/products.cpp
  engines/ops/attention_op.cpp engines/ops/matmul_op.cpp engines/ort/active_call.cpp)
set(blip2rt "")
set(blip2rt-threads -pthread -Wno-pthreads-mem-growth "-sPTHREAD_POOL_SIZE=Module[\"threads\"]-1")
foreach(name blip2rt blip2rt-threads)
  add_executable(${name} packages/web/engine/decoders.cpp packages/web/engine/onnxruntime.cpp)
  if(name STREQUAL "blip2rt")  # linkers of LLVM 19 misplace thread-local variables in memory that is not shared
    target_sources(${name} PRIVATE ${thread_local_sources})
    target_compile_definitions(${name} PRIVATE thread_local=static)
  endif()
  target_link_libraries(${name} PRIVATE blip2rt_web)
  target_link_options(${name} PRIVATE -Oz -fwasm-exceptions --no-entry -sMODULARIZE -sEXPORT_ES6
    -sENVIRONMENT=web,worker,node -sFILESYSTEM=0 -sDYNAMIC_EXECUTION=0 -sSTACK_SIZE=1MB -sINITIAL_MEMORY=64MB
    -sALLOW_MEMORY_GROWTH -sMAXIMUM_MEMORY=2GB -sMEMORY_GROWTH_GEOMETRIC_STEP=0.05
    -sEXPORTED_FUNCTIONS=${symbols} -sEXPORTED_RUNTIME_METHODS=${methods} ${${name}})
endforeach()
