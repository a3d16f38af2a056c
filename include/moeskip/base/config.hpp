// The only home of compiler #ifdefs.
#pragma once

#include <cstddef>

// Host and device: per-token functions of policies are written once and also compiled by nvcc.
#if defined(__CUDACC__)
  #define MOESKIP_HD __host__ __device__
#else
  #define MOESKIP_HD
#endif

namespace moeskip {

// What the 32 lanes of a warp have in common: a device has instructions for it, on the host `played` says how. All lanes
// ask. Of a sum each lane has the same bits.
template <class Played> MOESKIP_HD float sum_of_lanes([[maybe_unused]] const Played* played, float v) {
#if defined(__CUDA_ARCH__)
  for (int m = 16; m; m /= 2) v += __shfl_xor_sync(~0u, v, m);
  return v;
#else
  return played->sum(v);
#endif
}
template <class Played> MOESKIP_HD int most_of_lanes([[maybe_unused]] const Played* played, int v) {
#if defined(__CUDA_ARCH__)
  return __reduce_max_sync(~0u, v);
#else
  return played->most(v);
#endif
}
// From here on lanes see what the others wrote before.
template <class Played> MOESKIP_HD void wait_for_lanes([[maybe_unused]] const Played* played) {
#if defined(__CUDA_ARCH__)
  __syncwarp();
#else
  played->most(0);
#endif
}

using index_t = std::ptrdiff_t;  // every extent and offset; signed, so that differences are safe

// Bytes to which buffers are aligned: one cache line, one AVX-512 register.
inline constexpr std::size_t alignment = 64;

// Instruction sets as types. A backend carries the set it was compiled for: cpu<float> of units built with different
// flags are different types, so that a model handed from one to the other does not link. This shows some mistakes and
// not all: templates without a backend in their arguments (std's, views, policies) are shared by all units, and the
// linker keeps one. All units of a program that include moeskip must be compiled for one -march.
// rank orders those of one machine; width: floats in a vector.
namespace isa {
struct generic {
  static constexpr const char* name = "generic";
  static constexpr int rank = 0, width = 0;
};
struct sse2 {
  static constexpr const char* name = "sse2";
  static constexpr int rank = 1, width = 4;
};
struct avx2 {
  static constexpr const char* name = "avx2+fma";
  static constexpr int rank = 2, width = 8;
};
struct avx512 {
  static constexpr const char* name = "avx512";
  static constexpr int rank = 3, width = 16;
};
struct avx512_bf16 {
  static constexpr const char* name = "avx512+bf16";
  static constexpr int rank = 4, width = 16;
};
struct neon64 {
  static constexpr const char* name = "neon64";
  static constexpr int rank = 1, width = 4;
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
  #if defined(__AVX512BF16__)
using native = avx512_bf16;
  #else
using native = avx512;
  #endif
#elif defined(__AVX2__) && defined(__FMA__)
using native = avx2;
#elif defined(__SSE2__)
using native = sse2;
#elif defined(__aarch64__)
using native = neon64;
#else
using native = generic;
#endif

// The best of these that the running CPU offers.
struct offer {
  const char* name;
  int rank;
};
inline offer offered() {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return __builtin_cpu_supports("avx512bf16") ? offer{avx512_bf16::name, avx512_bf16::rank}
                                                : offer{avx512::name, avx512::rank};
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return {avx2::name, avx2::rank};
  return {sse2::name, sse2::rank};
#else
  return {native::name, native::rank};
#endif
}
}  // namespace isa

}  // namespace moeskip
