// Dense products by cuBLAS, where the build has it (MOESKIP_CUBLAS). nvcc alone reads this (cuda.cuh).
#pragma once

#if defined(MOESKIP_CUBLAS)
  #include <cublas_v2.h>
#endif

#include <cstddef>

#include "moeskip/backend/cuda/device.hpp"
#include "moeskip/backend/cuda/device_stream.cuh"
#include "moeskip/backend/cuda/gemm.hpp"

namespace moeskip {

#if defined(MOESKIP_CUBLAS)
namespace detail {

inline void expect_success(cublasStatus_t code, const char* call, const char* purpose) {
  MOESKIP_CHECK(error, code == CUBLAS_STATUS_SUCCESS, "cuda: ", call, " (", purpose, "): expected success, got ",
                cublasGetStatusName(code), ": ", cublasGetStatusString(code));
}

/// A thread's cuBLAS, in the thread's stream. With a workspace that no other stream uses it gives the same bits every
/// time, and asks for no memory while a graph is made.
class device_blas {
 public:
  static device_blas& here() {
    thread_local device_blas b;
    return b;
  }
  void multiply(const gemm_call& g) {
    const auto op = [](const gemm_factor& f) { return f.transposed ? CUBLAS_OP_T : CUBLAS_OP_N; };
    const auto type = g.in_bf16 ? CUDA_R_16BF : CUDA_R_32F;
    const float one = 1, of_c = g.adds ? 1 : 0;
    expect_success(
        cublasGemmEx_64(handle_, op(g.a), op(g.b), g.m, g.n, g.k, &one, g.a.data, type, g.a.leading, g.b.data, type,
                        g.b.leading, &of_c, g.c, CUDA_R_32F, g.m, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
        "cublasGemmEx", "a dense product");
  }
  ~device_blas() { cublasDestroy(handle_), cudaFree(workspace_); }

 private:
  static constexpr std::size_t room = std::size_t{32} << 20;  // bytes: what cuBLAS itself takes on Hopper
  device_blas() {
    expect_success(cudaMalloc(&workspace_, room), "cudaMalloc", "cuBLAS's workspace");
    expect_success(cublasCreate(&handle_), "cublasCreate", "start");
    expect_success(cublasSetStream(handle_, cudaStreamPerThread), "cublasSetStream", "start");
    // After the stream, which resets it.
    expect_success(cublasSetWorkspace(handle_, workspace_, room), "cublasSetWorkspace", "start");
    expect_success(cublasSetAtomicsMode(handle_, CUBLAS_ATOMICS_NOT_ALLOWED), "cublasSetAtomicsMode", "start");
  }
  void* workspace_ = nullptr;
  cublasHandle_t handle_ = nullptr;
};

}  // namespace detail

inline bool driver::device::has_gemm() { return true; }
namespace detail {
inline void make_gemm_ready() { device_blas::here(); }
}  // namespace detail
inline void driver::device::gemm(const gemm_call& call) {
  detail::device_stream::here().last = "gemm";
  detail::device_blas::here().multiply(call);
}
#else
inline bool driver::device::has_gemm() { return false; }
namespace detail {
inline void make_gemm_ready() {}
}  // namespace detail
inline void driver::device::gemm(const gemm_call&) { fail("gemm: cuda.cuh was compiled without cuBLAS"); }
#endif

}  // namespace moeskip
