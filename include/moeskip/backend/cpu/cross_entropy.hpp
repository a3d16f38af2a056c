// Next-token loss on the CPU: rows in SIMD, split among the threads.
#pragma once

#include <cmath>

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/cross_entropy.hpp"

namespace moeskip {

template <> struct kernel<cross_entropy_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, vec<float> losses, mat<float> logits, vec<const int> targets, double scale) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const index_t V = logits.cols();
    parallel_for(
        logits.rows(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n) {
            float* row = logits.row(n).data();
            const float target = row[targets[n]], highest = k::row_max<A>(row, V);
            const float sum = k::exp_row<A>(row, row, highest, 1.f, V);
            losses[n] = std::log(sum) + highest - target;
            if (scale == 0) continue;
            k::scale_row<A>(row, row, float(scale) / sum, V);
            row[targets[n]] -= float(scale);
          }
        },
        16);
  }
};

}  // namespace moeskip
