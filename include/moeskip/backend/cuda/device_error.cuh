// What CUDA's calls return, as exceptions. nvcc alone reads this (cuda.cuh).
#pragma once

#include <cuda_runtime.h>

#include "moeskip/base/check.hpp"

namespace moeskip::detail {

/// Throws error, naming the call, what it was for, and what CUDA says.
inline void expect_success(cudaError_t code, const char* call, const char* purpose) {
  MOESKIP_CHECK(error, code == cudaSuccess, "cuda: ", call, " (", purpose, "): expected success, got ",
                cudaGetErrorName(code), ": ", cudaGetErrorString(code));
}

}  // namespace moeskip::detail
