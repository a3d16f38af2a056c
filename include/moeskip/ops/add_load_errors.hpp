// How far each expert's load lies above the mean, over the experts that some row could choose: what a selection bias is
// moved against.                                                                  Wang et al. 2024, arXiv:2408.15664
//   d_e += load_e − 1 / E'   for each of the E' experts
#pragma once

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/routing.hpp"

namespace moeskip {

/// d, load (E). Throws shape_error.
struct add_load_errors_t {
  static constexpr const char* name = "add_load_errors";
  template <class B>
  void operator()(B& b, vec<scalar_t<B>> d, vec<const scalar_t<B>> load, const living_experts& alive) const {
    expect_shape(name, "load", load, d.size());
    run_kernel<add_load_errors_t>(b, d, load, alive);
  }
};
inline constexpr add_load_errors_t add_load_errors{};

template <> struct kernel<add_load_errors_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> d, vec<const T> load, const living_experts& alive) {
    expert_set all;
    for (const expert_set& set : alive.sets) all |= set;
    const T mean = T(1) / T(real_t<T>(all.size()));
    for (index_t e = 0; e < d.size(); ++e)
      if (all.contains(int(e))) d[e] += load[e] - mean;
  }
};

}  // namespace moeskip
