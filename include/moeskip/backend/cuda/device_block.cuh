// A block of threads on a GPU, as phases see it. nvcc alone reads this (cuda.cuh).
#pragma once

#include <cooperative_groups.h>

#include <cstdint>
#include <utility>

#include "moeskip/base/lanes.hpp"
#include "moeskip/tensor/view.hpp"

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

}  // namespace moeskip
