// Masks of expert dropout on the CPU: rows split among the threads.
#pragma once

#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/draw_survivors.hpp"
#include "moeskip/ops/mask_outputs.hpp"

namespace moeskip {

template <> struct kernel<draw_survivors_t, on_cpu> {
  template <class B, class P> static void run(B&, vec<expert_set> sets, const survivors_of<P>& of) {
    parallel_for(
        sets.size(), [&](index_t first, index_t last) { of.fill(sets, first, last); }, 64);
  }
};

template <> struct kernel<mask_outputs_t, on_cpu> {
  template <class B>
  static void run(B&, mat<float> masked, mat<const float> value, mat<const int> chosen, const output_mask& mask) {
    parallel_for(
        masked.rows(),
        [&](index_t first, index_t last) {
          kernel<mask_outputs_t, on_reference>::rows(masked, value, chosen, mask, first, last);
        },
        64);
  }
};

}  // namespace moeskip
