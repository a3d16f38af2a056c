// Root-mean-square normalisation on the CPU: rows in SIMD, many rows on all threads.
#pragma once

#include <cmath>

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/rms_norm.hpp"

namespace moeskip {

namespace cpu_kernels {
template <class A> float reciprocal_rms(const float* x, index_t size, float eps) {
  return 1.f / std::sqrt(dot<A>(x, x, size) / float(size) + eps);
}
}  // namespace cpu_kernels

template <> struct kernel<rms_norm_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, mat<float> y, mat<const float> x, vec<const W> gain, float eps) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const index_t D = x.cols();
    const float* g = k::as_floats(gain.data(), D);
    parallel_for(
        x.rows(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n) {
            const float* in = x.row(n).data();
            float* out = y.row(n).data();
            const simd::lanes<A> r(k::reciprocal_rms<A>(in, D, eps));
            k::for_vectors<A>(D, [&](index_t i, auto c) {
              k::store<A>(out + i, k::load<A>(in + i, c) * r * k::load<A>(g + i, c), c);
            });
          }
        },
        32);
  }
};

template <> struct kernel<rms_norm_backward_t, on_cpu> {
  /// Each thread sums dgain over a fixed block of rows; blocks are then added in order, so the sum does not depend on
  /// how many threads there are.
  static constexpr index_t block_rows = 256;

  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> dx, vec<float> dgain,
                                                         mat<const float> dy, mat<const float> x, vec<const W> gain,
                                                         float eps) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    struct sums;
    const index_t D = x.cols(), blocks = (x.rows() + block_rows - 1) / block_rows;
    const float* g = k::as_floats(gain.data(), D);
    float* partial = k::thread_scratch<sums>(blocks * D);
    std::fill_n(partial, blocks * D, 0.f);
    parallel_for(blocks, [&](index_t first, index_t last) {
      for (index_t n = first * block_rows; n < std::min(last * block_rows, x.rows()); ++n)
        row<A>(dx.row(n).data(), partial + n / block_rows * D, dy.row(n).data(), x.row(n).data(), g, D, eps);
    });
    for (index_t b = 0; b < blocks; ++b) k::add_scaled<A>(dgain.data(), 1.f, partial + b * D, D);
  }

 private:
  template <class A>
  static void row(float* dx, float* dgain, const float* dy, const float* x, const float* gain, index_t D, float eps) {
    namespace k = cpu_kernels;
    const float r = k::reciprocal_rms<A>(x, D, eps);
    const simd::lanes<A> rs(r);
    simd::lanes<A> sum = simd::zero<A>();  // Σ dy · gain · x r
    k::for_vectors<A>(D, [&](index_t i, auto c) {
      const auto product = k::load<A>(dy + i, c) * k::load<A>(x + i, c) * rs;
      sum = simd::fma<A>(product, k::load<A>(gain + i, c), sum);
      k::store<A>(dgain + i, k::load<A>(dgain + i, c) + product, c);
    });
    const simd::lanes<A> mean(simd::reduce_add<A>(sum) / float(D));
    k::for_vectors<A>(D, [&](index_t i, auto c) {
      const auto grad = k::load<A>(dy + i, c) * k::load<A>(gain + i, c) - k::load<A>(x + i, c) * rs * mean;
      k::store<A>(dx + i, simd::fma<A>(rs, grad, k::load<A>(dx + i, c)), c);
    });
  }
};

}  // namespace moeskip
