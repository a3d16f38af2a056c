// What nvcc compiles: the device's side of ms::cuda, and the kernels of a program. In one .cu of the program
//   #include <moeskip/cuda.cuh>
//   #include "my_variant.hpp"
//   template struct moeskip::cuda_kernels<>;               // every phase
//   template struct moeskip::cuda_program<my_variant>;     // its router and expert dropout, which run on the device
// The CMake helper moeskip_add_cuda(target) brings the first with policies of the library, and the flags that nvcc
// needs, and defines MOESKIP_CUBLAS where it links cuBLAS.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>
#if defined(MOESKIP_CUBLAS)
  #include <cublas_v2.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <utility>
#include <vector>

#include "moeskip/backend/cuda/device.hpp"
#include "moeskip/backend/cuda/program.hpp"

namespace moeskip {

/// A thread's view of its block; emulated_block has the same members.
class device_block {
 public:
  __device__ explicit device_block(float* shared) : device_block(shared, int(blockIdx.x), int(gridDim.x)) {}
  /// The same thread, doing another phase's work as a thread of another block.
  __device__ device_block as(index_t block, index_t blocks, float* shared, const char*) const {
    return {shared, int(block), int(blocks)};
  }
  __device__ int thread() const { return int(threadIdx.x); }
  __device__ int threads() const { return int(blockDim.x); }
  __device__ index_t block() const { return block_; }
  __device__ index_t blocks() const { return blocks_; }
  __device__ int lane() const { return int(threadIdx.x) % 32; }
  __device__ int warp() const { return int(threadIdx.x) / 32; }
  __device__ int warps() const { return int(blockDim.x) / 32; }
  __device__ float* shared() const { return shared_; }
  __device__ void sync(int) const { __syncthreads(); }
  /// Of all blocks, which were launched together: a block says that its work is done, and later waits for the others.
  __device__ auto arrive_all() const { return cooperative_groups::this_grid().barrier_arrive(); }
  template <class Arrived> __device__ void wait_all(Arrived arrived, int) const {
    cooperative_groups::this_grid().barrier_wait(std::move(arrived));
  }
  /// Whether this block is the last of `blocks` to come here: it sees what the others wrote before. One thread asks; all
  /// of its block have written by then. The counter is zero before and after.
  __device__ bool last_of(index_t blocks, int* counter) const {
    __threadfence();
    const bool last = atomicAdd(counter, 1) == int(blocks) - 1;
    if (last) *counter = 0;
    __threadfence();
    return last;
  }
  /// The line of memory around p will be read: into the second level of cache.
  __device__ void prefetch(const void* p) const { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }
  __device__ float warp_sum(float v) const { return butterfly(v); }
  __device__ double warp_sum(double v) const { return butterfly(v); }
  __device__ float warp_max(float v) const {
    for (int m = 16; m; m /= 2) v = fmaxf(v, __shfl_xor_sync(~0u, v, m));
    return v;
  }
  __device__ warp_lanes lanes() const { return warp_lanes(lane()); }
  __device__ float warp_at(float v, int lane) const { return __shfl_sync(~0u, v, lane); }
  __device__ std::uint32_t warp_which(bool v) const { return __ballot_sync(~0u, v); }
  __device__ std::uint32_t warp_same(int v) const { return __match_any_sync(~0u, v); }
  __device__ void sync_warp() const { __syncwarp(); }
  __device__ float warp_xor(float v, int mask) const { return __shfl_xor_sync(~0u, v, mask); }
  __device__ void load_transposed(std::uint32_t (&b)[2], const std::uint32_t* row) const {
    const auto at = std::uint32_t(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(b[0]), "=r"(b[1])
                 : "r"(at)
                 : "memory");
  }
  /// sum += a b of 16 × 16 and 16 × 8 numbers in bf16, on tensor cores.
  __device__ void multiply_add(float (&sum)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) const {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }

 private:
  __device__ device_block(float* shared, int block, int blocks) : shared_(shared), block_(block), blocks_(blocks) {}
  template <class T> __device__ static T butterfly(T v) {
    for (int m = 16; m; m /= 2) v += __shfl_xor_sync(~0u, v, m);
    return v;
  }
  float* shared_;
  int block_, blocks_;
};

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

namespace detail {

/// Throws error, naming the call, what it was for, and what CUDA says.
inline void expect_success(cudaError_t code, const char* call, const char* purpose) {
  MOESKIP_CHECK(error, code == cudaSuccess, "cuda: ", call, " (", purpose, "): expected success, got ",
                cudaGetErrorName(code), ": ", cudaGetErrorString(code));
}

/// Memory that host and device share: pages go to whoever touches them.
struct shared_pages {
  static void* take(std::size_t bytes, std::size_t) {
    // More than the device has would travel to and fro, and can bring it to a halt.
    const std::size_t have = memory_of_device(), others = taken().fetch_add(bytes);
    void* p = nullptr;
    if (others + bytes > have) {
      taken() -= bytes;
      fail("out of memory: ", bytes, " bytes were asked for; expected at most the ", have,
           " that the device had free at the start, of which ", others, " are taken");
    }
    if (cudaMallocManaged(&p, bytes) != cudaSuccess) {
      cudaGetLastError();  // forgotten, or the next launch would report it
      taken() -= bytes;
      throw std::bad_alloc();
    }
    reached_memory::add(p, bytes);
    return p;
  }
  static void give(void* p, std::size_t bytes, std::size_t) {
    reached_memory::remove(p);
    taken() -= bytes;
    // Fails where the program is ending and the driver is gone: nothing is lost then.
    if (cudaFree(p) != cudaSuccess) cudaGetLastError();
  }

 private:
  static std::atomic<std::size_t>& taken() {
    static std::atomic<std::size_t> bytes{0};
    return bytes;
  }
  static std::size_t memory_of_device() {
    static const std::size_t bytes = [] {
      std::size_t free = 0, all = 0;
      expect_success(cudaMemGetInfo(&free, &all), "cudaMemGetInfo", "start");
      return free;
    }();
    return bytes;
  }
};

/// What a thread asked the device for and has not waited for.
class device_stream {
 public:
  static device_stream& here() {
    thread_local device_stream s;
    return s;
  }
  /// A copy on the device, made in the stream by way of pinned memory. All layers of a call ask for the same few lists:
  /// what was copied a moment ago and is still the same is not copied again.
  const void* list(const void* from, std::size_t bytes) {
    const auto begin = std::ptrdiff_t(recent_.size()) > most_recent ? recent_.end() - most_recent : recent_.begin();
    for (auto known = recent_.end(); known != begin;)
      if (--known; known->bytes == bytes && std::memcmp(known->host, from, bytes) == 0) return known->device;
    const placed to = place(bytes);
    std::memcpy(to.host, from, bytes);
    expect_success(cudaMemcpyAsync(to.device, to.host, bytes, cudaMemcpyHostToDevice, cudaStreamPerThread),
                   "cudaMemcpyAsync", "lists of rows");
    recent_.push_back(to);
    return to.device;
  }
  void settle() { expect_success(wait(), "cudaStreamSynchronize", last); }
  cudaError_t wait() {
    const cudaError_t code = cudaStreamSynchronize(cudaStreamPerThread);
    at_ = 0, used_ = 0, recent_.clear();
    return code;
  }
  /// Keeps back what the stream is asked for.
  void begin_graph() {
    if (kept_back_) return;
    // Relaxed: an arena may take memory meanwhile.
    expect_success(cudaStreamBeginCapture(cudaStreamPerThread, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture",
                   "a graph");
    kept_back_ = true;
  }
  /// Starts what was kept back.
  void start_graph() {
    if (!std::exchange(kept_back_, false)) return;
    cudaGraph_t kept = nullptr;
    expect_success(cudaStreamEndCapture(cudaStreamPerThread, &kept), "cudaStreamEndCapture", last);
    const std::unique_ptr<cudaGraph_t, void (*)(cudaGraph_t*)> owner(&kept,
                                                                     [](cudaGraph_t* g) { cudaGraphDestroy(*g); });
    std::size_t nodes = 0;
    expect_success(cudaGraphGetNodes(kept, nullptr, &nodes), "cudaGraphGetNodes", last);
    if (nodes == 0) return;
    cudaGraphExec_t& made = graphs_[nodes];
    cudaGraphExecUpdateResultInfo what{};
    if (made && cudaGraphExecUpdate(made, kept, &what) != cudaSuccess) {  // other kernels, as many of them
      cudaGetLastError();
      expect_success(cudaGraphExecDestroy(std::exchange(made, nullptr)), "cudaGraphExecDestroy", last);
    }
    if (!made) expect_success(cudaGraphInstantiate(&made, kept, 0), "cudaGraphInstantiate", last);
    expect_success(cudaGraphLaunch(made, cudaStreamPerThread), "cudaGraphLaunch", last);
  }
  /// Throws away what was kept back.
  void drop_graph() {
    cudaGraph_t kept = nullptr;
    if (std::exchange(kept_back_, false) && cudaStreamEndCapture(cudaStreamPerThread, &kept) == cudaSuccess && kept)
      cudaGraphDestroy(kept);
    cudaGetLastError();
  }
  ~device_stream() {
    for (const auto& [nodes, made] : graphs_)
      if (made) cudaGraphExecDestroy(made);
    for (const chunk& c : chunks_) cudaFreeHost(c.host), cudaFree(c.device);
  }

  arena scratch;
  counters_of_blocks counters;
  const char* last = "nothing was asked for";  // the phase launched last

 private:
  static constexpr std::ptrdiff_t most_recent = 8;
  struct placed {
    void *host, *device;
    std::size_t bytes;
  };
  struct chunk {
    char *host, *device;
    std::size_t size;
  };
  placed place(std::size_t bytes) {
    const std::size_t room = (bytes + alignment - 1) / alignment * alignment;
    while (at_ < chunks_.size() && used_ + room > chunks_[at_].size) ++at_, used_ = 0;
    if (at_ == chunks_.size()) {
      chunk fresh{nullptr, nullptr, std::max(room, std::size_t{1} << 20)};
      expect_success(cudaHostAlloc(&fresh.host, fresh.size, cudaHostAllocDefault), "cudaHostAlloc", "lists of rows");
      expect_success(cudaMalloc(&fresh.device, fresh.size), "cudaMalloc", "lists of rows");
      chunks_.push_back(fresh);
    }
    const placed to{chunks_[at_].host + used_, chunks_[at_].device + used_, bytes};
    used_ += room;
    return to;
  }
  bool kept_back_ = false;
  std::map<std::size_t, cudaGraphExec_t> graphs_;  // by the number of their nodes
  std::vector<chunk> chunks_;
  std::vector<placed> recent_;
  std::size_t at_ = 0, used_ = 0;
};

}  // namespace detail

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
  static volatile const void* kept[] = {reinterpret_cast<const void*>(&driver::device::each<P>)...};
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
