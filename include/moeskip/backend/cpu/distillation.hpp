// Distillation on the CPU: rows in SIMD, split among the threads.
#pragma once

#include <cmath>

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/distillation.hpp"

namespace moeskip {

template <> struct kernel<distillation_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, vec<float> losses, vec<float> divergences,
                                                         mat<float> logits, mat<const float> teacher,
                                                         vec<const int> targets, double scale, double share) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    using lanes = simd::lanes<A>;
    const index_t V = logits.cols();
    parallel_for(
        logits.rows(),
        [&](index_t first, index_t last) {
          struct teachers_row;
          float* p = k::thread_scratch<teachers_row>(V);  // not yet divided by its sum
          for (index_t n = first; n < last; ++n) {
            float* row = logits.row(n).data();
            const float* t = teacher.row(n).data();
            const float t_highest = k::row_max<A>(t, V), t_sum = k::exp_row<A>(p, t, t_highest, 1.f, V);
            lanes difference = simd::zero<A>();
            k::for_vectors<A>(V, [&](index_t i, auto count) {
              const lanes gap = k::load<A>(t + i, count) - k::load<A>(row + i, count);
              difference = simd::fma<A>(k::load<A>(p + i, count), gap, difference);
            });
            const float target = row[targets[n]], highest = k::row_max<A>(row, V);
            const float sum = k::exp_row<A>(row, row, highest, 1.f, V), lse = std::log(sum) + highest;
            losses[n] = lse - target;
            divergences[n] = simd::reduce_add<A>(difference) / t_sum + (lse - (std::log(t_sum) + t_highest));
            k::scale_row<A>(row, row, float(scale) / sum, V);
            k::add_scaled<A>(row, -float(scale * share) / t_sum, p, V);
            row[targets[n]] -= float(scale * (1 - share));
          }
        },
        16);
  }
};

}  // namespace moeskip
