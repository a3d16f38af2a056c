# The CUDA backend, for -DMOESKIP_CUDA=ON and find_package(moeskip COMPONENTS cuda):
#   moeskip::cuda                                 the library's kernels
#   MOESKIP_CUBLAS                                dense products of many rows by cuBLAS: ON where the toolkit has it
#   moeskip_add_cuda(<target> [<file>.cu ...])    links them to a target, and compiles kernels of its own variants
# A project with .cu files of its own enables CUDA itself: project(… LANGUAGES CXX CUDA).
set(MOESKIP_CUDA_ARCHITECTURES 80-real 90 CACHE STRING
    "GPUs that kernels are made for; by default compute capability 8.0 and 9.0, and what is newer through PTX")
find_program(CMAKE_CUDA_COMPILER nvcc HINTS ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
if(NOT CMAKE_CUDA_COMPILER)
  message(FATAL_ERROR "MOESKIP_CUDA needs nvcc: install the CUDA Toolkit 12.4 or newer, or set CMAKE_CUDA_COMPILER.")
endif()
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
  set(CMAKE_CUDA_ARCHITECTURES ${MOESKIP_CUDA_ARCHITECTURES})
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
set(moeskip_found_cublas OFF)
if(TARGET CUDA::cublas)
  set(moeskip_found_cublas ON)
endif()
option(MOESKIP_CUBLAS "On GPUs, dense products of many rows by cuBLAS and not by own kernels" ${moeskip_found_cublas})
if(MOESKIP_CUBLAS AND NOT TARGET CUDA::cublas)
  message(FATAL_ERROR "MOESKIP_CUBLAS needs cuBLAS, which the CUDA Toolkit at ${CUDAToolkit_LIBRARY_DIR} does not have.")
endif()

# -std: CMake 3.25 does not know that nvcc 13 has C++20. Relaxed constexpr: policies may use std's constexpr functions.
# -Werror: nvcc only warns where a kernel calls a function that is not MOESKIP_HD, and leaves the call out.
set(moeskip_flags_of_nvcc -std=c++20 --expt-relaxed-constexpr -Werror=cross-execution-space-call)
if(TARGET OpenMP::OpenMP_CXX)
  list(APPEND moeskip_flags_of_nvcc -Xcompiler=-fopenmp) # all units of a program see the same base/parallel.hpp
endif()
if(MOESKIP_WERROR)
  list(APPEND moeskip_flags_of_nvcc -Werror=all-warnings -Xptxas=--warn-on-spills,--warning-as-error)
endif()
set(moeskip_cuda_flags ${moeskip_flags_of_nvcc} CACHE INTERNAL "") # moeskip_add_cuda may be called from any folder

if(NOT TARGET moeskip_cuda) # find_package may be called twice
  add_library(moeskip_cuda STATIC EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/kernels.cu)
  add_library(moeskip::cuda ALIAS moeskip_cuda)
  target_link_libraries(moeskip_cuda PUBLIC moeskip::moeskip CUDA::cudart_static)
  target_compile_options(moeskip_cuda PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${moeskip_cuda_flags}>")
  if(MOESKIP_CUBLAS)
    target_link_libraries(moeskip_cuda PUBLIC CUDA::cublas)
    target_compile_definitions(moeskip_cuda PUBLIC MOESKIP_CUBLAS) # all units of a program see the same cuda.cuh
  endif()
  set_target_properties(moeskip_cuda PROPERTIES POSITION_INDEPENDENT_CODE ON
                                                CUDA_ARCHITECTURES "${MOESKIP_CUDA_ARCHITECTURES}")
endif()

function(moeskip_add_cuda target)
  if(ARGN AND NOT CMAKE_CUDA_COMPILE_OBJECT)
    message(FATAL_ERROR "moeskip_add_cuda(${target} ${ARGN}): write project(... LANGUAGES CXX CUDA), which compiles it.")
  endif()
  target_sources(${target} PRIVATE ${ARGN})
  target_link_libraries(${target} PRIVATE moeskip::cuda)
  target_compile_options(${target} PRIVATE "$<$<COMPILE_LANGUAGE:CUDA>:${moeskip_cuda_flags}>")
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES "${MOESKIP_CUDA_ARCHITECTURES}")
endfunction()
