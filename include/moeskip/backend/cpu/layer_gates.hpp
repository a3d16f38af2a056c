// Gates of layers on the CPU: rows split among the threads.
#pragma once

#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/layer_gates.hpp"

namespace moeskip {

template <> struct kernel<pass_gates_t, on_cpu> {
  template <class B>
  static void run(B&, mat<float> y, mat<const float> x, mat<const float> made, vec<const float> opened) {
    parallel_for(
        x.rows(),
        [&](index_t first, index_t last) { kernel<pass_gates_t, on_reference>::rows(y, x, made, opened, first, last); },
        32);
  }
};

template <> struct kernel<pass_gates_backward_t, on_cpu> {
  template <class B> static void run(B&, mat<float> d, mat<float> past, mat<float> dlogit, mat<const float> x,
                                     mat<const float> made, vec<const float> opened, mat<const float> logit,
                                     const gate_slope& slope, const gate_pull<float>& pull) {
    parallel_for(
        x.rows(),
        [&](index_t first, index_t last) {
          kernel<pass_gates_backward_t, on_reference>::rows(d, past, dlogit, x, made, opened, logit, slope, pull, first,
                                                            last);
        },
        32);
  }
};

}  // namespace moeskip
