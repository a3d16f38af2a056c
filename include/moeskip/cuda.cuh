// What nvcc compiles: the device's side of ms::cuda, and the kernels of a program. In one .cu of the program
//   #include <moeskip/cuda.cuh>
//   #include "my_variant.hpp"
//   template struct moeskip::cuda_kernels<>;               // every phase
//   template struct moeskip::cuda_program<my_variant>;     // its router and expert dropout, which run on the device
// The CMake helper moeskip_add_cuda(target) brings the first with common policies of the library, and the flags that
// nvcc needs, and defines MOESKIP_CUBLAS where it links cuBLAS.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>

#include "moeskip/backend/cuda/device.hpp"
#include "moeskip/backend/cuda/device_blas.cuh"
#include "moeskip/backend/cuda/device_block.cuh"
#include "moeskip/backend/cuda/device_stream.cuh"
#include "moeskip/backend/cuda/program.hpp"
#include "moeskip/backend/cuda/shared_pages.cuh"

namespace moeskip {

namespace device_kernel {

// Arguments that stay where they are: functions that are not inlined see them there, too.
template <class Phase> __global__ void each(index_t n, const __grid_constant__ Phase phase) {
  const index_t step = index_t(gridDim.x) * blockDim.x;
  for (index_t i = index_t(blockIdx.x) * blockDim.x + threadIdx.x; i < n; i += step) phase(i);
}

template <class Phase> __global__ void blocks(const __grid_constant__ Phase phase) {
  extern __shared__ __align__(16) float shared[];
  phase(device_block(shared));
}
/// Where a phase says how many of its blocks should fit a multiprocessor: registers are given out so.
template <class Phase> __global__ void __launch_bounds__(Phase::threads, Phase::blocks_at_once)
    bounded_blocks(const __grid_constant__ Phase phase) {
  extern __shared__ __align__(16) float shared[];
  phase(device_block(shared));
}
template <class Phase> auto of() {
  if constexpr (requires { Phase::blocks_at_once; }) return &bounded_blocks<Phase>;
  else return &blocks<Phase>;
}

}  // namespace device_kernel

namespace driver {

inline void device::start() {
  // Once: whoever wants products that are not rounded makes a backend for each.
  static const bool started = [] {
    int count = 0, number = 0, major = 0, shares = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    MOESKIP_CHECK(error, code == cudaSuccess && count > 0,
                  "no CUDA device: expected a GPU of compute capability 8.0 or more and its driver, and CUDA says \"",
                  cudaGetErrorString(code == cudaSuccess ? cudaErrorNoDevice : code), "\"");
    detail::expect_success(cudaGetDevice(&number), "cudaGetDevice", "start");
    detail::expect_success(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number),
                           "cudaDeviceGetAttribute", "compute capability");
    detail::expect_success(cudaDeviceGetAttribute(&shares, cudaDevAttrConcurrentManagedAccess, number),
                           "cudaDeviceGetAttribute", "concurrent managed access");
    MOESKIP_CHECK(error, major >= 8 && shares, "CUDA device ", number,
                  ": expected compute capability 8.0 or more with ", "concurrent managed access, got ", major, ".x ",
                  shares ? "with it" : "without it");
    buffers_from = {&detail::shared_pages::take, &detail::shared_pages::give};
    return true;
  }();
  static_cast<void>(started);
}

template <class Phase> void device::each(index_t n, const Phase& phase) {
  constexpr index_t threads = 256, most = index_t{1} << 20;
  const auto blocks = unsigned(std::min(detail::ceiling(n, threads), most));
  detail::device_stream::here().last = Phase::name;
  device_kernel::each<<<blocks, unsigned(threads), 0, cudaStreamPerThread>>>(n, phase);
  detail::expect_success(cudaGetLastError(), "kernel launch", Phase::name);
}

template <class Phase> void device::launch(const launch_shape& shape, const Phase& phase) {
  MOESKIP_CHECK(error, shape.blocks < index_t{1} << 31, "cuda: ", Phase::name, ": expected under 2^31 blocks, got ",
                shape.blocks);
  detail::device_stream::here().last = Phase::name;
  const auto kernel = device_kernel::of<Phase>();
  const std::size_t bytes = std::size_t(shape.shared) * sizeof(float);
  if (bytes > std::size_t{48} << 10)  // more must be asked for
    detail::expect_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
                           "cudaFuncSetAttribute", Phase::name);
  kernel<<<unsigned(shape.blocks), unsigned(shape.threads), bytes, cudaStreamPerThread>>>(phase);
  detail::expect_success(cudaGetLastError(), "kernel launch", Phase::name);
}

template <class Follow> void device::follow(index_t shared, const Follow& phase) {
  detail::device_stream::here().last = Follow::name;
  const auto kernel = device_kernel::of<Follow>();
  const std::size_t bytes = std::size_t(shared) * sizeof(float);
  int number = 0, processors = 0, fit = 0;
  detail::expect_success(cudaGetDevice(&number), "cudaGetDevice", Follow::name);
  detail::expect_success(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, number),
                         "cudaDeviceGetAttribute", Follow::name);
  detail::expect_success(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(bytes)),
                         "cudaFuncSetAttribute", Follow::name);
  detail::expect_success(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, Follow::threads, bytes),
                         "cudaOccupancyMaxActiveBlocksPerMultiprocessor", Follow::name);
  MOESKIP_CHECK(error, fit > 0, "cuda: ", Follow::name, ": expected a multiprocessor to hold a block of ",
                Follow::threads, " threads with ", bytes, " bytes of shared memory, got none");
  Follow argument = phase;
  void* arguments[] = {&argument};
  // Together: they wait for each other. One on each multiprocessor: all its registers are theirs.
  detail::expect_success(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(processors)),
                                                     dim3(Follow::threads), arguments, bytes, cudaStreamPerThread),
                         "cudaLaunchCooperativeKernel", Follow::name);
}

inline void device::settle() { detail::device_stream::here().settle(); }
inline void device::forget() {
  if (detail::device_stream::here().wait() != cudaSuccess) cudaGetLastError();
  detail::device_stream::here().counters.clear();
}

inline void graph::begin() {
  detail::make_gemm_ready();  // cuBLAS cannot be while the stream is captured
  detail::device_stream::here().begin_graph();
}
inline void graph::settle() {
  try {
    detail::device_stream::here().start_graph();
  } catch (...) {
    device::forget();  // lists that were to be copied were not
    throw;
  }
  device::settle();
}
inline void graph::forget() {
  detail::device_stream::here().drop_graph();
  device::forget();
}

inline void device::bring(const void* p, std::size_t bytes) {
  int number = 0;
  detail::expect_success(cudaGetDevice(&number), "cudaGetDevice", "weights");
#if CUDART_VERSION >= 13000
  const cudaError_t code = cudaMemPrefetchAsync(p, bytes, {cudaMemLocationTypeDevice, number}, 0, cudaStreamPerThread);
#else
  const cudaError_t code = cudaMemPrefetchAsync(p, bytes, number, cudaStreamPerThread);
#endif
  detail::expect_success(code, "cudaMemPrefetchAsync", "weights");
}
inline const void* device::list(const void* p, std::size_t bytes) {
  return p && bytes ? detail::device_stream::here().list(p, bytes) : nullptr;
}

inline int* device::counters(index_t n) { return detail::device_stream::here().counters.take(n); }
inline arena& device::scratch() { return detail::device_stream::here().scratch; }

}  // namespace driver

namespace detail {

/// Takes the addresses of what phases need of the device, so that the compiler makes it and other units can link it.
template <class... P> int keep_each(phase_list<P...>) {
  static volatile const void* kept[] = {nullptr, reinterpret_cast<const void*>(&driver::device::each<P>)...};
  return kept[0] != nullptr;
}
template <class... P> int keep_blocks(phase_list<P...>) {
  static volatile const void* kept[] = {reinterpret_cast<const void*>(&driver::device::launch<P>)...};
  return kept[0] != nullptr;
}

}  // namespace detail

/// Kernels of every phase but those that policies make, for weights in float and bf16.
template <class... None> struct cuda_kernels {
  static int keep() {
    using namespace detail;
    static volatile const void* kept[] = {reinterpret_cast<const void*>(&driver::device::start),
                                          reinterpret_cast<const void*>(&driver::device::settle),
                                          reinterpret_cast<const void*>(&driver::graph::settle),
                                          reinterpret_cast<const void*>(&driver::graph::begin),
                                          reinterpret_cast<const void*>(&driver::graph::forget),
                                          reinterpret_cast<const void*>(&driver::device::forget),
                                          reinterpret_cast<const void*>(&driver::device::bring),
                                          reinterpret_cast<const void*>(&driver::device::list),
                                          reinterpret_cast<const void*>(&driver::device::scratch),
                                          reinterpret_cast<const void*>(&driver::device::counters),
                                          reinterpret_cast<const void*>(&driver::device::has_gemm),
                                          reinterpret_cast<const void*>(&driver::device::gemm)};
    return (kept[0] != nullptr) + keep_each(each_of_floats{}) + keep_blocks(blocks_of_floats{}) +
           keep_each(each_of_weights<float>{}) + keep_blocks(blocks_of_weights<float>{}) +
           keep_each(each_of_weights<bf16>{}) + keep_blocks(blocks_of_weights<bf16>{});
  }
};

/// Kernels of routers alone.
template <class... Routers> struct cuda_routers {
  static int keep() {
    return (0 + ... + detail::keep_each(each_of_router<Routers>{})) +
           (0 + ... + detail::keep_blocks(blocks_of_router<Routers>{}));
  }
};

/// Kernels of expert dropout alone, for training.
template <class... Policies> struct cuda_expert_dropout {
  static int keep() { return (0 + ... + detail::keep_each(each_of_dropout<Policies>{})); }
};

/// Kernels of the loops of decoder::on_device for weights W and a router: of each exit rule's early exit, and with
/// exit_rule::fixed also of plain and of speculative decoding.
template <class W, class Router, class... Rules> struct cuda_loops {
  static int keep() {
    static volatile const void* kept[] = {
        reinterpret_cast<const void*>(&driver::device::follow<loop_kernel<W, Router, Rules>>)...};
    return (kept[0] != nullptr) + detail::keep_each(phase_list<phase::ask_exit<Rules>...>{});
  }
};

/// Kernels that variant V adds: its router, run per token on the device, and its expert dropout, per set of survivors.
template <class V> struct cuda_program : cuda_routers<typename V::router>,
                                         cuda_expert_dropout<typename V::expert_dropout> {
  static int keep() {
    return cuda_routers<typename V::router>::keep() + cuda_expert_dropout<typename V::expert_dropout>::keep();
  }
};

}  // namespace moeskip
