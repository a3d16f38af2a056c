# What the headers, tests, examples and benchmarks need: the system's package where there is one, else a pinned tag
# from the public repository. -DFETCHCONTENT_TRY_FIND_PACKAGE_MODE=NEVER always fetches;
# -DFETCHCONTENT_SOURCE_DIR_EIGEN3=<folder> (and _XSIMD, ...) takes a local copy.
include(FetchContent)

# moeskip_dependency(<package> <target> REPOSITORY <url> TAG <tag> [HEADERS <dir>] [MINIMUM <version>])
#
# HEADERS: the library is headers in <dir> of its repository. Then a fetched copy's own CMake files, which are slow
# (Eigen) or too old for CMake 4 (xsimd), are not run; <target> becomes a plain include directory.
# MINIMUM is checked by hand: the version files of Eigen 3.4 and xsimd 8.1 refuse ranges, and Eigen 5 refuses "3.4".
# GLOBAL: a project that takes moeskip by add_subdirectory must see the targets that moeskip's interface names.
function(moeskip_dependency package target)
  cmake_parse_arguments(PARSE_ARGV 2 arg "" "REPOSITORY;TAG;HEADERS;MINIMUM" "")
  if(TARGET ${target})
    return() # the surrounding project has brought it
  endif()

  set(own_cmake "")
  if(DEFINED arg_HEADERS)
    set(own_cmake SOURCE_SUBDIR do_not_run_its_cmake)
  endif()
  FetchContent_Declare(${package}
    GIT_REPOSITORY ${arg_REPOSITORY}
    GIT_TAG ${arg_TAG}
    GIT_SHALLOW ON
    SYSTEM ${own_cmake}
    FIND_PACKAGE_ARGS CONFIG GLOBAL QUIET)
  FetchContent_MakeAvailable(${package})

  string(TOLOWER ${package} folder)
  if(${folder}_SOURCE_DIR) # fetched; empty where a package was found
    set_property(GLOBAL APPEND PROPERTY MOESKIP_FETCHED "${package}=${${folder}_SOURCE_DIR}")
    if(DEFINED arg_HEADERS AND NOT TARGET ${target})
      add_library(${target} INTERFACE IMPORTED GLOBAL)
      target_include_directories(${target} INTERFACE ${${folder}_SOURCE_DIR}/${arg_HEADERS})
    endif()
  elseif(DEFINED arg_MINIMUM AND ${package}_VERSION VERSION_LESS arg_MINIMUM)
    message(FATAL_ERROR "moeskip needs ${package} ${arg_MINIMUM} or newer; ${${package}_DIR} has "
                        "${${package}_VERSION}. Update it, or let CMake fetch all libraries with "
                        "-DFETCHCONTENT_TRY_FIND_PACKAGE_MODE=NEVER.")
  endif()
  if(NOT TARGET ${target})
    message(FATAL_ERROR "${package} was found in ${${package}_DIR}${${folder}_SOURCE_DIR}, but it does not define "
                        "the target ${target}.")
  endif()
endfunction()

# Fetched versions are those of Ubuntu 24.04.
moeskip_dependency(xsimd xsimd MINIMUM 8.1 HEADERS include
                   REPOSITORY https://github.com/xtensor-stack/xsimd.git TAG 12.1.1)
moeskip_dependency(nlohmann_json nlohmann_json::nlohmann_json MINIMUM 3.10 HEADERS include
                   REPOSITORY https://github.com/nlohmann/json.git TAG v3.11.3)
if(MOESKIP_BUILD_TESTS)
  moeskip_dependency(doctest doctest::doctest MINIMUM 2.4 HEADERS .
                     REPOSITORY https://github.com/doctest/doctest.git TAG v2.4.11)
endif()
if(MOESKIP_BUILD_EXAMPLES)
  moeskip_dependency(CLI11 CLI11::CLI11 MINIMUM 2.1 HEADERS include
                     REPOSITORY https://github.com/CLIUtils/CLI11.git TAG v2.4.1)
endif()
if(MOESKIP_BUILD_BENCH)
  moeskip_dependency(Eigen3 Eigen3::Eigen MINIMUM 3.4 HEADERS .
                     REPOSITORY https://gitlab.com/libeigen/eigen.git TAG 3.4.0)
  set(BENCHMARK_ENABLE_TESTING OFF)
  set(BENCHMARK_ENABLE_INSTALL OFF)
  set(BENCHMARK_ENABLE_WERROR OFF)
  moeskip_dependency(benchmark benchmark::benchmark MINIMUM 1.7
                     REPOSITORY https://github.com/google/benchmark.git TAG v1.8.3)
endif()

if(MOESKIP_OPENMP AND NOT TARGET OpenMP::OpenMP_CXX)
  find_package(OpenMP QUIET GLOBAL COMPONENTS CXX)
  if(NOT OpenMP_CXX_FOUND)
    message(FATAL_ERROR "${CMAKE_CXX_COMPILER} has no OpenMP. With clang on Debian or Ubuntu: apt install libomp-dev. "
                        "Or go on with one thread: -DMOESKIP_OPENMP=OFF.")
  endif()
endif()
