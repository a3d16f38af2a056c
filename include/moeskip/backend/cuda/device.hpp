// driver::device: phases as kernels on the current GPU, in the calling thread's stream, one by one.
// driver::graph: the same kernels, kept back until settle() and then started together as a CUDA graph, whose kernels
// follow each other without the host. Graphs of as many kernels are made once and then updated. For decoding, where
// kernels are short; a thread uses one of both at a time.
// Plain C++ sees declarations; cuda.cuh has the definitions, and cuda_kernels<> and cuda_program<V> make kernels. A phase
// that no .cu of the program made is an undefined reference to driver::device::each or launch, whose argument names it.
#pragma once

#include "moeskip/backend/cuda/backend.hpp"

namespace moeskip {
struct gemm_call;
}

namespace moeskip::driver {

struct device {
  static constexpr const char *name = "cuda", *blas = "cuBLAS";
  /// 256 MiB in float. Each part of the logits reads and writes all of the head's gradient: it should be worth it.
  static constexpr index_t logits_at_once = index_t{1} << 26;

  /// Throws error, in one sentence, where there is no device that can be used. From the first call on, buffers are made
  /// of memory that host and device share.
  static void start();
  template <class Phase> static void each(index_t n, const Phase& phase);
  template <class Phase> static void launch(const launch_shape& shape, const Phase& phase);
  /// A script, by as many blocks as the device holds at once.
  template <class Follow> static void follow(index_t shared, const Follow& phase);
  /// Whether cuda.cuh was compiled with cuBLAS.
  static bool has_gemm();
  static void gemm(const gemm_call& call);
  /// Throws error for what went wrong on the device since the last call.
  static void settle();
  /// Waits, and is silent about what went wrong.
  static void forget();
  /// Pages of p go to the device before it asks for them one by one.
  static void bring(const void* p, std::size_t bytes);
  static const void* list(const void* p, std::size_t bytes);
  static arena& scratch();
  static int* counters(index_t n);
};

struct graph {
  static constexpr const char *name = "cuda graphs", *blas = device::blas;
  static constexpr index_t logits_at_once = device::logits_at_once;

  static void start() { device::start(); }
  template <class Phase> static void each(index_t n, const Phase& phase) { begin(), device::each(n, phase); }
  template <class Phase> static void launch(const launch_shape& shape, const Phase& phase) {
    begin(), device::launch(shape, phase);
  }
  template <class Follow> static void follow(index_t shared, const Follow& phase) {
    settle(), device::follow(shared, phase);
  }
  static bool has_gemm() { return device::has_gemm(); }
  static void gemm(const gemm_call& call) { begin(), device::gemm(call); }
  static void settle();
  static void forget();
  static void bring(const void* p, std::size_t bytes) { settle(), device::bring(p, bytes); }
  static const void* list(const void* p, std::size_t bytes) { return begin(), device::list(p, bytes); }
  static arena& scratch() { return device::scratch(); }
  static int* counters(index_t n) { return device::counters(n); }
  /// What the stream is asked for from now on is kept back.
  static void begin();
};

}  // namespace moeskip::driver
