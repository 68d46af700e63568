# Compiles with zig (PyPI: ziglang), which has musl, and Windows' headers: -DZIG_TARGET=x86_64-linux-musl
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ZIG_TARGET)
string(REGEX MATCH "^([^-]+)-(.)([^-]+)" known "${ZIG_TARGET}")
set(CMAKE_SYSTEM_PROCESSOR ${CMAKE_MATCH_1})
string(TOUPPER "${CMAKE_MATCH_2}" first)
set(CMAKE_SYSTEM_NAME "${first}${CMAKE_MATCH_3}")  # Linux or Windows

# Programs of one word, as other projects' scripts expect.
get_filename_component(root "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)
file(GLOB zig "${root}/.venv-release/lib/python3*/site-packages/ziglang/zig")
set(tools "${root}/build/images/tools/${ZIG_TARGET}")
foreach(tool cc c++ ar ranlib rc)
  set(options "")
  if(tool MATCHES "^c")
    set(options "-target ${ZIG_TARGET} -fno-sanitize=undefined")
  endif()
  file(CONFIGURE OUTPUT "${tools}/${tool}" CONTENT "#!/bin/sh\nexec ${zig} ${tool} ${options} \"\$@\"\n" @ONLY)
  file(CHMOD "${tools}/${tool}" PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE)
endforeach()
set(CMAKE_C_COMPILER "${tools}/cc")
set(CMAKE_CXX_COMPILER "${tools}/c++")
set(CMAKE_AR "${tools}/ar" CACHE FILEPATH "")
set(CMAKE_RANLIB "${tools}/ranlib" CACHE FILEPATH "")
set(CMAKE_RC_COMPILER "${tools}/rc")
set(CCACHE "" CACHE FILEPATH "zig has a cache of its own")

# Of the machine that compiles, only programs are used.
set(CMAKE_FIND_ROOT_PATH "${root}/build/images/${ZIG_TARGET}")
set(CMAKE_FIND_ROOT_PATH_MODE_PROGRAM NEVER)
set(CMAKE_FIND_ROOT_PATH_MODE_LIBRARY ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_INCLUDE ONLY)
set(CMAKE_FIND_ROOT_PATH_MODE_PACKAGE ONLY)
set(ENV{PKG_CONFIG_LIBDIR} "${CMAKE_FIND_ROOT_PATH}/lib/pkgconfig")
