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

using index_t = std::ptrdiff_t;  // every extent and offset; signed, so that differences are safe

// Bytes to which buffers are aligned: one cache line, one AVX-512 register.
inline constexpr std::size_t alignment = 64;

// Instruction sets as types. A backend carries the set it was compiled for, so that two translation units built with
// different flags never share a symbol.
namespace isa {
struct generic {
  static constexpr const char* name = "generic";
};
struct sse2 {
  static constexpr const char* name = "sse2";
};
struct avx2 {
  static constexpr const char* name = "avx2+fma";
};
struct avx512 {
  static constexpr const char* name = "avx512";
};
struct neon64 {
  static constexpr const char* name = "neon64";
};

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
using native = avx512;
#elif defined(__AVX2__) && defined(__FMA__)
using native = avx2;
#elif defined(__SSE2__)
using native = sse2;
#elif defined(__aarch64__)
using native = neon64;
#else
using native = generic;
#endif

// What the running CPU offers at least; describe() compares it with what was compiled for.
inline const char* offered() {
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    return avx512::name;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::name;
  return sse2::name;
#else
  return native::name;
#endif
}
}  // namespace isa

}  // namespace moeskip
