// The one door to xsimd (8.1, as in Debian 12, up to 14): vectors of floats, the functions of them that
// kernels use, and bf16. No other header names xsimd, so that its versions differ in one file only.
//   N     floats in one vector: 4 (SSE2, NEON), 8 (AVX2), 16 (AVX-512)
//   bf16  2 N of them are N 32-bit words; the even ones are words << 16, the odd ones words & 0xffff0000: two
//         cheap instructions, no shuffle (xsimd's converting loads spill to memory, and beyond 128 bits its
//         zips stay within groups of 128)
// Everything is a template on Arch: no vector type depends on a unit's flags unseen. All units of a program must still
// be compiled for one -march (base/config.hpp).
#pragma once

#include <cstdint>
#include <type_traits>

// g++ 12 takes the deliberately undefined operands in its own AVX-512 intrinsics for mistakes (bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
  #pragma GCC diagnostic push
  #pragma GCC diagnostic ignored "-Wuninitialized"
  #pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <xsimd/xsimd.hpp>
#if defined(__GNUC__) && !defined(__clang__)
  #pragma GCC diagnostic pop
#endif

#include "moeskip/base/config.hpp"
#include "moeskip/base/scalar.hpp"

namespace moeskip::simd {

using native_arch = xsimd::default_arch;  // the best that the compiler targets

template <class Arch> using lanes = xsimd::batch<float, Arch>;          // (N)
template <class Arch> using words = xsimd::batch<std::uint32_t, Arch>;  // (N), each word two bf16
template <class Arch> inline constexpr index_t width = index_t(lanes<Arch>::size);

// Vector registers of the architecture: AVX-512 and AArch64 have 32, everything else 16. Kernels size their
// tiles by it.
template <class Arch> inline constexpr int registers = 16;
template <class Arch>
  requires(width<Arch> == 16)
inline constexpr int registers<Arch> = 32;
#if XSIMD_WITH_NEON64
template <> inline constexpr int registers<xsimd::neon64> = 32;
#endif

/// Makes the compiler take x for a value that it cannot read again: g++ otherwise turns every use of a loaded
/// vector into a memory operand, and a kernel that uses it four times is bound by loads.
template <class T, class Arch> [[gnu::always_inline]] inline void hold(xsimd::batch<T, Arch>& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x.data));
#elif defined(__aarch64__)
  asm("" : "+w"(x.data));
#else
  static_cast<void>(x);
#endif
}

// ---- memory ----

template <class Arch> lanes<Arch> zero() { return lanes<Arch>(0.0f); }
template <class Arch> lanes<Arch> load(const float* p) { return lanes<Arch>::load_unaligned(p); }
template <class Arch> void store(float* p, lanes<Arch> x) { x.store_unaligned(p); }

/// The first n < N floats at p, zeros after them; touches nothing beyond p + n.
template <class Arch> lanes<Arch> load_part(const float* p, index_t n) {
  alignas(alignment) float buffer[width<Arch>] = {};
  for (index_t i = 0; i < n; ++i) buffer[i] = p[i];
  return lanes<Arch>::load_aligned(buffer);
}

/// The first n < N lanes of x to p.
template <class Arch> void store_part(float* p, lanes<Arch> x, index_t n) {
  alignas(alignment) float buffer[width<Arch>];
  x.store_aligned(buffer);
  for (index_t i = 0; i < n; ++i) p[i] = buffer[i];
}

/// Asks for the cache line at p + ahead, which need not exist; into the first level of cache, or only the
/// second.
enum class cache : int { second = 2, first = 3 };
template <cache into = cache::first, class T> [[gnu::always_inline]] inline void prefetch(const T* p, index_t ahead) {
  const auto address = reinterpret_cast<std::intptr_t>(p) + ahead * index_t(sizeof(T));
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, int(into));
  asm volatile("");  // g++ 12 takes a function that only prefetches for one without effect, and drops its calls
}

// ---- arithmetic ----

/// a * b + c, rounded once where the hardware has it. xsimd 8.1 has no AVX-512 version, and clang does not
/// fuse its multiply and add: hence the one intrinsic.
template <class Arch> [[gnu::always_inline]] inline lanes<Arch> fma(lanes<Arch> a, lanes<Arch> b, lanes<Arch> c) {
#if XSIMD_WITH_AVX512F
  if constexpr (width<Arch> == 16) return lanes<Arch>(_mm512_fmadd_ps(a, b, c));
  else
#endif
    return xsimd::fma(a, b, c);
}

template <class Arch> lanes<Arch> exp(lanes<Arch> x) { return xsimd::exp(x); }
template <class Arch> lanes<Arch> sqrt(lanes<Arch> x) { return xsimd::sqrt(x); }
template <class Arch> lanes<Arch> max(lanes<Arch> a, lanes<Arch> b) { return xsimd::max(a, b); }
template <class Arch> lanes<Arch> sigmoid(lanes<Arch> x) {
  return lanes<Arch>(1.0f) / (lanes<Arch>(1.0f) + simd::exp(-x));
}
template <class Arch> lanes<Arch> silu(lanes<Arch> x) { return x / (lanes<Arch>(1.0f) + simd::exp(-x)); }

// ---- sums of lanes: halves are added until one lane is left, lane i + n/2 to lane i, on every Arch ----

// Four lanes, on which every xsimd has correct zips.
template <class Arch> using quad_arch = std::conditional_t<width<Arch> == 4, Arch, xsimd::sse2>;
template <class Arch> using quad = lanes<quad_arch<Arch>>;

/// The first steps of the sum: N lanes to 4.
template <class Arch> [[gnu::always_inline]] inline quad<Arch> fold(lanes<Arch> x) {
  constexpr int N = int(width<Arch>);
  static_assert(N == 4 || N == 8 || N == 16);
  if constexpr (N == 4) {
    return x;
  } else {
    alignas(alignment) float buffer[N];
    x.store_aligned(buffer);
    const auto part = [&](int i) { return quad<Arch>::load_aligned(buffer + 4 * i); };
    if constexpr (N == 8) return part(0) + part(1);
    else return (part(0) + part(2)) + (part(1) + part(3));
  }
}

/// The sum of all lanes.
template <class Arch> float reduce_add(lanes<Arch> x) {
  alignas(alignment) float q[4];
  fold(x).store_aligned(q);
  return (q[0] + q[2]) + (q[1] + q[3]);
}

/// {reduce_add(a), reduce_add(b), reduce_add(c), reduce_add(d)}, bit for bit, in a quarter of the time.
template <class Arch>
[[gnu::always_inline]] inline quad<Arch> reduce_add(lanes<Arch> a, lanes<Arch> b, lanes<Arch> c, lanes<Arch> d) {
  const quad<Arch> fa = fold(a), fb = fold(b), fc = fold(c), fd = fold(d);
  const quad<Arch> ac = xsimd::zip_lo(fa, fc) + xsimd::zip_hi(fa, fc);  // a02 c02 a13 c13
  const quad<Arch> bd = xsimd::zip_lo(fb, fd) + xsimd::zip_hi(fb, fd);
  return xsimd::zip_lo(ac, bd) + xsimd::zip_hi(ac, bd);
}

/// The largest lane.
template <class Arch> float reduce_max(lanes<Arch> x) {
  alignas(alignment) float buffer[width<Arch>];
  x.store_aligned(buffer);
  float most = buffer[0];
  for (index_t i = 1; i < width<Arch>; ++i) most = buffer[i] > most ? buffer[i] : most;
  return most;
}

// ---- bf16 ----

namespace detail {
/// The same bits as floats.
template <class Arch> [[gnu::always_inline]] inline lanes<Arch> as_floats(words<Arch> w) {
#if XSIMD_VERSION_MAJOR >= 11
  return xsimd::bitwise_cast<float>(w);
#else
  return xsimd::bitwise_cast<lanes<Arch>>(w);
#endif
}
}  // namespace detail

/// 2 N bf16 at p, as N words.
template <class Arch> words<Arch> load_words(const bf16* p) {
  return words<Arch>::load_unaligned(reinterpret_cast<const std::uint32_t*>(p));
}
/// Elements 0, 2, 4, … and 1, 3, 5, … of the 2 N bf16 in w, exactly.
template <class Arch> lanes<Arch> even(words<Arch> w) { return detail::as_floats<Arch>(w << 16); }
template <class Arch> lanes<Arch> odd(words<Arch> w) { return detail::as_floats<Arch>(w & words<Arch>(0xffff0000u)); }

// Products of bf16. AVX512-BF16 takes numbers under 2^-126 for zero, and adds both products before the sum.

/// sum + even(a) even(b) + odd(a) odd(b), lane by lane.
template <class Arch> [[gnu::always_inline]] inline lanes<Arch> dot(words<Arch> a, words<Arch> b, lanes<Arch> sum) {
#if defined(__AVX512BF16__)
  if constexpr (width<Arch> == 16) return lanes<Arch>(_mm512_dpbf16_ps(sum, (__m512bh)a.data, (__m512bh)b.data));
  else
#endif
    return simd::fma<Arch>(odd<Arch>(a), odd<Arch>(b), simd::fma<Arch>(even<Arch>(a), even<Arch>(b), sum));
}

/// to (n) = x (n), rounded.
template <class Arch> void round(bf16* to, const float* x, index_t n) {
  index_t i = 0;
#if defined(__AVX512BF16__)
  if constexpr (width<Arch> == 16)
    for (; i + 16 <= n; i += 16)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + i)));
#endif
  for (; i < n; ++i) to[i] = bf16(x[i]);
}

/// N words: low[i] in the lower half, high[i] in the upper one; floats are rounded.
template <class Arch> words<Arch> pairs(const bf16* low, const bf16* high) {
#if defined(__AVX512BF16__)
  if constexpr (width<Arch> == 16) {
    const auto wide = [](const bf16* p) {
      return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    };
    return words<Arch>(_mm512_or_si512(wide(low), _mm512_slli_epi32(wide(high), 16)));
  }
#endif
  alignas(alignment) std::uint32_t both[width<Arch>];
  for (index_t i = 0; i < width<Arch>; ++i) both[i] = low[i].bits | std::uint32_t(high[i].bits) << 16;
  return words<Arch>::load_aligned(both);
}
template <class Arch> words<Arch> pairs(const float* low, const float* high) {
#if defined(__AVX512BF16__)
  if constexpr (width<Arch> == 16) {
    const auto wide = [](const float* p) {
      return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(p)));
    };
    return words<Arch>(_mm512_or_si512(wide(low), _mm512_slli_epi32(wide(high), 16)));
  }
#endif
  bf16 halves[2][width<Arch>];
  simd::round<Arch>(halves[0], low, width<Arch>), simd::round<Arch>(halves[1], high, width<Arch>);
  return pairs<Arch>(halves[0], halves[1]);
}

/// The same of the first n < N to p, and nothing beyond p + n.
template <class Arch> void store_pairs_part(std::uint32_t* p, const float* low, const float* high, index_t n) {
#if defined(__AVX512BF16__)
  if constexpr (width<Arch> == 16) {
    const auto mask = __mmask16((1u << n) - 1);
    const auto wide = [&](const float* x) {
      return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x)));
    };
    return _mm512_mask_storeu_epi32(p, mask, _mm512_or_si512(wide(low), _mm512_slli_epi32(wide(high), 16)));
  }
#endif
  for (index_t i = 0; i < n; ++i) p[i] = bf16(low[i]).bits | std::uint32_t(bf16(high[i]).bits) << 16;
}

// ---- shuffles, of quads only ----

/// a, b, c, d become the columns of the 4 by 4 matrix of which they were the rows.
template <class T, class Arch>
[[gnu::always_inline]] inline void transpose(xsimd::batch<T, Arch>& a, xsimd::batch<T, Arch>& b,
                                             xsimd::batch<T, Arch>& c, xsimd::batch<T, Arch>& d) {
  static_assert(width<Arch> == 4);
  const auto ac = xsimd::zip_lo(a, c), AC = xsimd::zip_hi(a, c);  // a0 c0 a1 c1, a2 c2 a3 c3
  const auto bd = xsimd::zip_lo(b, d), BD = xsimd::zip_hi(b, d);
  a = xsimd::zip_lo(ac, bd), b = xsimd::zip_hi(ac, bd);
  c = xsimd::zip_lo(AC, BD), d = xsimd::zip_hi(AC, BD);
}

/// evens = e0 e1 e2 e3, odds = o0 o1 o2 o3 to e0 o0 e1 o1, e2 o2 e3 o3.
template <class Arch> [[gnu::always_inline]] inline void interleave(lanes<Arch>& evens, lanes<Arch>& odds) {
  static_assert(width<Arch> == 4);
  const lanes<Arch> low = xsimd::zip_lo(evens, odds);
  odds = xsimd::zip_hi(evens, odds);
  evens = low;
}

/// The reverse: x0 x1 x2 x3, x4 x5 x6 x7 to x0 x2 x4 x6, x1 x3 x5 x7.
template <class Arch> [[gnu::always_inline]] inline void deinterleave(lanes<Arch>& low, lanes<Arch>& high) {
  interleave(low, high);  // x0 x4 x1 x5, x2 x6 x3 x7
  interleave(low, high);  // x0 x2 x4 x6, x1 x3 x5 x7
}

}  // namespace moeskip::simd
