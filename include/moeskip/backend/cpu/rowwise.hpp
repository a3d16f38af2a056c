// Rows of floats: sums, maxima and exponentials in SIMD. Each runs over whole vectors in order, then over the rest
// padded, so a row's bits depend on nothing but the row.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "moeskip/backend/cpu/scratch.hpp"
#include "moeskip/backend/cpu/simd.hpp"
#include "moeskip/base/config.hpp"
#include "moeskip/concepts/backend.hpp"

namespace moeskip::cpu_kernels {

/// The SIMD architecture behind a backend's instruction set.
template <class Isa> struct arch_of {
  static_assert(std::is_same_v<Isa, isa::native>,
                "moeskip: cpu<W, Isa> must name the instruction set that this translation unit is compiled for: leave "
                "Isa out, or change the compiler's -march");
  // Otherwise one name would stand for several codes, and two translation units could exchange their kernels.
  static_assert(
      simd::width<simd::native_arch> == Isa::width || std::is_same_v<Isa, isa::generic>,
      "moeskip: the compiler targets an instruction set between those that moeskip knows (such as AVX without "
      "AVX2 and FMA): compile for x86-64, x86-64-v3, x86-64-v4 or -march=native");
  using type = simd::native_arch;
};
template <class Isa> using arch = typename arch_of<Isa>::type;

/// body(i, n): called for every whole vector at i with n = N, and once for the rest with n < N.
template <class A, class Body> [[gnu::always_inline]] inline void for_vectors(index_t size, Body&& body) {
  constexpr index_t N = simd::width<A>;
  index_t i = 0;
  for (; i + N <= size; i += N) body(i, std::integral_constant<index_t, N>{});
  if (i < size) body(i, size - i);
}

template <class A, class Count> [[gnu::always_inline]] inline simd::lanes<A> load(const float* p, Count n) {
  if constexpr (std::is_same_v<Count, index_t>) return simd::load_part<A>(p, n);
  else return simd::load<A>(p);
}
template <class A, class Count> [[gnu::always_inline]] inline void store(float* p, simd::lanes<A> x, Count n) {
  if constexpr (std::is_same_v<Count, index_t>) simd::store_part<A>(p, x, n);
  else simd::store<A>(p, x);
}

/// Σ a_i b_i.
template <class A> float dot(const float* a, const float* b, index_t size) {
  simd::lanes<A> sum = simd::zero<A>();
  for_vectors<A>(size, [&](index_t i, auto n) { sum = simd::fma<A>(load<A>(a + i, n), load<A>(b + i, n), sum); });
  return simd::reduce_add<A>(sum);
}

/// y += factor · x.
template <class A> void add_scaled(float* y, float factor, const float* x, index_t size) {
  const simd::lanes<A> f(factor);
  for_vectors<A>(size,
                 [&](index_t i, auto n) { store<A>(y + i, simd::fma<A>(f, load<A>(x + i, n), load<A>(y + i, n)), n); });
}

/// The largest; minus infinity for an empty row.
template <class A> float row_max(const float* x, index_t size) {
  constexpr float lowest = -std::numeric_limits<float>::infinity();
  simd::lanes<A> best(lowest);
  index_t i = 0;
  for (; i + simd::width<A> <= size; i += simd::width<A>) best = simd::max<A>(best, simd::load<A>(x + i));
  float most = simd::reduce_max<A>(best);
  for (; i < size; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

/// y = exp(factor · (x − shift)); returns the sum. y may be x.
template <class A> float exp_row(float* y, const float* x, float shift, float factor, index_t size) {
  const simd::lanes<A> s(shift), f(factor);
  simd::lanes<A> sum = simd::zero<A>();
  float rest = 0;
  for_vectors<A>(size, [&](index_t i, auto n) {
    const simd::lanes<A> e = simd::exp<A>(f * (load<A>(x + i, n) - s));
    store<A>(y + i, e, n);
    if constexpr (std::is_same_v<decltype(n), index_t>)  // padding is not part of the sum
      for (index_t j = 0; j < n; ++j) rest += y[i + j];
    else sum = sum + e;
  });
  return simd::reduce_add<A>(sum) + rest;
}

/// y = factor · x; y may be x.
template <class A> void scale_row(float* y, const float* x, float factor, index_t size) {
  const simd::lanes<A> f(factor);
  for_vectors<A>(size, [&](index_t i, auto n) { store<A>(y + i, f * load<A>(x + i, n), n); });
}

/// Stored weights as floats: themselves, or widened into the thread's scratch.
template <class W> const float* as_floats(const W* w, index_t size) {
  if constexpr (std::is_same_v<W, float>) {
    return w;
  } else {
    struct widened;
    float* out = thread_scratch<widened>(size);
    for (index_t i = 0; i < size; ++i) out[i] = static_cast<float>(w[i]);
    return out;
  }
}

}  // namespace moeskip::cpu_kernels
