// The experts of four matrices on the CPU: their activation and the sum of their outputs, rows in SIMD.
#pragma once

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/add_rows.hpp"
#include "moeskip/ops/gated_swiglu.hpp"

namespace moeskip {

template <> struct kernel<gated_swiglu_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> act, mat<const float> products) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const index_t F = act.cols();
    parallel_for(
        act.rows(),
        [&](index_t first, index_t last) {
          for (index_t m = first; m < last; ++m) {
            const float *a = products.row(m).data(), *b = a + F, *up = b + F;
            float* out = act.row(m).data();
            k::for_vectors<A>(F, [&](index_t i, auto n) {
              const auto gate = k::load<A>(a + i, n) * simd::silu<A>(k::load<A>(b + i, n));
              k::store<A>(out + i, gate * k::load<A>(up + i, n), n);
            });
          }
        },
        32);
  }
};

template <> struct kernel<add_rows_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, mat<float> y, mat<const float> x, vec<const int> rows, vec<const float> factors) {
    namespace k = cpu_kernels;
    parallel_for(
        rows.size(),
        [&](index_t first, index_t last) {
          for (index_t m = first; m < last; ++m)
            k::add_scaled<k::arch<Isa>>(y.row(rows[m]).data(), factors[m], x.row(m).data(), x.cols());
        },
        32);
  }
};

}  // namespace moeskip
