// Masks of expert dropout, drawn where they are used: sets of surviving experts by the policy's own function, a thread a
// set, and factors of experts' outputs. A policy of a user's is made a kernel by cuda_program (cuda.cuh).
#pragma once

#include <type_traits>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/ops/draw_survivors.hpp"
#include "moeskip/ops/mask_outputs.hpp"

namespace moeskip {

namespace phase {

template <class P> struct draw_survivors {
  static constexpr const char* name = "draw_survivors";
  vec<expert_set> sets;
  survivors_of<P> of;
  MOESKIP_HD void operator()(index_t n) const { sets[n] = of(n); }
};

struct mask_outputs {
  static constexpr const char* name = "mask_outputs";
  mat<float> masked;
  mat<const float> value;
  mat<const int> chosen;
  output_mask mask;
  MOESKIP_HD void operator()(index_t i) const {
    masked.data()[i] = value.data()[i] * float(mask.factor(i / masked.cols(), chosen.data()[i]));
  }
};

}  // namespace phase

template <> struct kernel<draw_survivors_t, on_cuda> {
  template <class B, class P> static void run(B&, vec<expert_set> sets, const survivors_of<P>& of) {
    using call = detail::device_call<draw_survivors_t, B>;
    static_assert(std::is_trivially_copyable_v<P>,
                  "moeskip: expert dropout that draws for sequences or tokens travels to the GPU: it must be trivially "
                  "copyable, so arrays of fixed size instead of std::vector");
    call::each(sets.size(), phase::draw_survivors<P>{call::seen(sets), call::with_listed_rows(of)});
  }
};

template <> struct kernel<mask_outputs_t, on_cuda> {
  template <class B>
  static void run(B&, mat<float> masked, mat<const float> value, mat<const int> chosen, const output_mask& mask) {
    using call = detail::device_call<mask_outputs_t, B>;
    call::each(masked.size(), phase::mask_outputs{call::seen(masked), call::seen(value), call::seen(chosen),
                                                  call::with_listed_rows(mask)});
  }
};

}  // namespace moeskip
