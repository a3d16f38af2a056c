// What is done to projections before attention, on the CPU: biases and the norms of heads, rows in SIMD.
#pragma once

#include "moeskip/backend/cpu/rms_norm.hpp"
#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/add_bias.hpp"
#include "moeskip/ops/norm_groups.hpp"

namespace moeskip {

template <> struct kernel<norm_groups_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, mat<float> x, vec<const W> gain, const column_groups& g, float eps) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const float* by = k::as_floats(gain.data(), g.width);
    parallel_for(
        x.rows(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n)
            for (index_t start = g.first; start < g.end(); start += g.width) {
              float* group = x.row(n).data() + start;
              const simd::lanes<A> r(k::reciprocal_rms<A>(group, g.width, eps));
              k::for_vectors<A>(g.width, [&](index_t i, auto c) {
                k::store<A>(group + i, k::load<A>(group + i, c) * r * k::load<A>(by + i, c), c);
              });
            }
        },
        32);
  }
};

template <> struct kernel<norm_groups_backward_t, on_cpu> {
  /// One thread: dgain is a sum over all rows and groups, and the columns are few.
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> dx, vec<float> dgain,
                                                         mat<const float> x, vec<const W> gain, const column_groups& g,
                                                         float eps) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const float* by = k::as_floats(gain.data(), g.width);
    for (index_t n = 0; n < x.rows(); ++n)
      for (index_t start = g.first; start < g.end(); start += g.width)
        group<A>(dx.row(n).data() + start, dgain.data(), x.row(n).data() + start, by, g.width, eps);
  }

 private:
  template <class A>
  static void group(float* d, float* dgain, const float* x, const float* gain, index_t width, float eps) {
    namespace k = cpu_kernels;
    const simd::lanes<A> r(k::reciprocal_rms<A>(x, width, eps));
    simd::lanes<A> sum = simd::zero<A>();  // Σ dy · gain · x r
    k::for_vectors<A>(width, [&](index_t i, auto c) {
      const auto product = k::load<A>(d + i, c) * k::load<A>(x + i, c) * r;
      sum = simd::fma<A>(product, k::load<A>(gain + i, c), sum);
      k::store<A>(dgain + i, k::load<A>(dgain + i, c) + product, c);
    });
    const simd::lanes<A> mean(simd::reduce_add<A>(sum) / float(width));
    k::for_vectors<A>(width, [&](index_t i, auto c) {
      const auto inner = k::load<A>(d + i, c) * k::load<A>(gain + i, c) - k::load<A>(x + i, c) * r * mean;
      k::store<A>(d + i, r * inner, c);
    });
  }
};

template <> struct kernel<add_bias_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> y, vec<const W> bias) {
    namespace k = cpu_kernels;
    const float* all = k::as_floats(bias.data(), bias.size());
    parallel_for(
        y.rows(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n) k::add_scaled<k::arch<Isa>>(y.row(n).data(), 1.f, all, bias.size());
        },
        32);
  }
};

template <> struct kernel<add_bias_backward_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, vec<float> dbias, mat<const float> dy) {
    namespace k = cpu_kernels;
    for (index_t n = 0; n < dy.rows(); ++n)
      k::add_scaled<k::arch<Isa>>(dbias.data(), 1.f, dy.row(n).data(), dbias.size());
  }
};

}  // namespace moeskip
