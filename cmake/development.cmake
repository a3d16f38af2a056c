# moeskip_dev: how the project compiles its own programs. Users of the library never link it.
#   moeskip_flags     warnings and sanitizers alone       moeskip_portable  the library with them, for any CPU
#   moeskip_dev       the same for this CPU, unless MOESKIP_NATIVE is off
include(CheckCXXCompilerFlag)

set(moeskip_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # g++ 12 finds the AVX-512 intrinsics of its own headers uninitialized, about 100 times with Eigen, and strings that
  # overlap themselves in "literal" + string (its bugs 105593 and 105651). For Intel's Ice Lake and later it also finds
  # undefined behaviour in a loop over rows where sanitizers find none.
  list(APPEND moeskip_warnings -Wno-maybe-uninitialized -Wno-restrict -Wno-aggressive-loop-optimizations)
endif()
if(MOESKIP_WERROR)
  list(APPEND moeskip_warnings -Werror)
endif()

add_library(moeskip_flags INTERFACE)
target_compile_options(moeskip_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${moeskip_warnings}>") # nvcc has its own
add_library(moeskip_portable INTERFACE)
target_link_libraries(moeskip_portable INTERFACE moeskip::moeskip moeskip_flags)
add_library(moeskip_dev INTERFACE)
target_link_libraries(moeskip_dev INTERFACE moeskip_portable)

if(MOESKIP_NATIVE)
  check_cxx_compiler_flag(-march=native MOESKIP_HAS_MARCH_NATIVE)
  if(NOT MOESKIP_HAS_MARCH_NATIVE)
    message(FATAL_ERROR "${CMAKE_CXX_COMPILER} does not know -march=native: configure with -DMOESKIP_NATIVE=OFF.")
  endif()
  target_compile_options(moeskip_dev INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>)
endif()

# What tests run with. Two threads, so that results are the same everywhere; who waits for the other one sleeps, so that
# ctest -j can run tests side by side.
set(moeskip_test_environment "OMP_NUM_THREADS=2;OMP_WAIT_POLICY=passive")

if(MOESKIP_SANITIZE)
  set(sanitize -fsanitize=${MOESKIP_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  target_compile_options(moeskip_flags INTERFACE ${sanitize})
  target_link_options(moeskip_flags INTERFACE ${sanitize})
endif()
