// Linear maps on the CPU. Up to 16 rows: the decode kernel, weights streamed once, each row's bits its own. More: the
// packed product, C split among the threads.
#pragma once

#include "moeskip/backend/cpu/gemm.hpp"
#include "moeskip/backend/cpu/matvec.hpp"
#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/linear.hpp"

namespace moeskip {

namespace cpu_kernels {

/// Fewer weight bytes than this are not worth starting the other threads for (about a microsecond).
inline constexpr index_t parallel_bytes = 64 << 10;

/// C (m, n), with products of P, on all threads, split along its longer side at multiples of the register tile.
template <class A, class P, class TA, class TB>
void parallel_gemm(const product& c, const factor<TA>& a, const factor<TB>& b, index_t m, index_t n, index_t k) {
  using tile = detail::gemm_tile<A>;
  const index_t worthwhile = m * n * k < 100'000 ? m + n + 1 : 0;
  if (m >= n) {
    parallel_for(
        m,
        [&](index_t first, index_t last) {
          gemm<A, P>(c, a, b, {first, last, 0, n}, k);
        },
        worthwhile, tile::m);
  } else {
    parallel_for(
        n,
        [&](index_t first, index_t last) {
          gemm<A, P>(c, a, b, {0, m, first, last}, k);
        },
        worthwhile, tile::n);
  }
}

/// y (t, O) = [residual +] x (t, I) · w (O, I)ᵀ for t <= 16 rows, on all threads where the weights are large.
template <class A, class P, class W>
void parallel_matvec(const matvec_args<W>& call, const float* x, index_t ldx, index_t out) {
  const index_t bytes = out * call.in * index_t(sizeof(W));
  parallel_for(
      out,
      [&](index_t first, index_t last) {
        struct packed_inputs;
        auto* packed = thread_scratch<packed_inputs, packed_input<W, P>>(packed_size<W, A>(call.tokens, call.in));
        pack_tokens<W, A>(packed, x, ldx, call.tokens, call.in);
        matvec<A>(call, packed, first, last);
      },
      bytes < parallel_bytes ? out + 1 : 0, 8);
}

}  // namespace cpu_kernels

template <> struct kernel<linear_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, mat<float> y, mat<const float> x, mat<const W> w, mat<const float> residual) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const index_t N = x.rows(), I = x.cols(), O = w.rows();
    if (N == 0) return;
    if (N <= k::max_matvec_tokens) {
      k::matvec_args<W> call{y.data(), O, w.data(), I, N, residual.data(), O};
      return k::parallel_matvec<A, P>(call, x.data(), I, O);
    }
    if (residual.data() && residual.data() != y.data())
      parallel_for(
          y.size(),
          [&](index_t first, index_t last) {
            std::copy(residual.data() + first, residual.data() + last, y.data() + first);
          },
          1 << 15);
    const k::product c{.data = y.data(), .stride = O, .accumulate = residual.data() != nullptr};
    k::parallel_gemm<A, P>(c, k::factor<float>{x.data(), I}, k::factor<W>{w.data(), I, true}, N, O, I);
  }
};

template <> struct kernel<linear_backward_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> dx, mat<float> dw,
                                                         mat<const float> dy, mat<const float> x, mat<const W> w) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const index_t N = x.rows(), I = x.cols(), O = w.rows();
    if (dx.data()) {
      const k::product c{.data = dx.data(), .stride = I};
      k::parallel_gemm<A, P>(c, k::factor<float>{dy.data(), O}, k::factor<W>{w.data(), I}, N, I, O);
    }
    if (dw.data()) {
      const k::product c{.data = dw.data(), .stride = I, .accumulate = true};
      k::parallel_gemm<A, P>(c, k::factor<float>{dy.data(), O, true}, k::factor<float>{x.data(), I}, O, I, N);
    }
  }
};

}  // namespace moeskip
