// act = silu(gate) · up, where a row of gate_up holds gate in its first half and up in its second.
//   gate_up (M, 2F)   act (M, F)                                          Shazeer 2020, arXiv:2002.05202
#pragma once

#include "moeskip/base/math.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct swiglu_t {
  static constexpr const char* name = "swiglu";
  template <class B> void operator()(B& b, mat<scalar_t<B>> act, mat<const scalar_t<B>> gate_up) const {
    expect_shape(name, "gate_up", gate_up, act.rows(), 2 * act.cols());
    run_kernel<swiglu_t>(b, act, gate_up);
  }
};
inline constexpr swiglu_t swiglu{};

/// dgate_up(M, 2F) = …; it may be gate_up itself.
struct swiglu_backward_t {
  static constexpr const char* name = "swiglu_backward";
  template <class B>
  void operator()(B& b, mat<scalar_t<B>> dgate_up, mat<const scalar_t<B>> dact, mat<const scalar_t<B>> gate_up) const {
    expect_shape(name, "gate_up", gate_up, dact.rows(), 2 * dact.cols());
    expect_shape(name, "dgate_up", dgate_up, dact.rows(), 2 * dact.cols());
    run_kernel<swiglu_backward_t>(b, dgate_up, dact, gate_up);
  }
};
inline constexpr swiglu_backward_t swiglu_backward{};

template <> struct kernel<swiglu_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> act, mat<const T> gate_up) {
    for (index_t m = 0; m < act.rows(); ++m)
      for (index_t f = 0; f < act.cols(); ++f) act(m, f) = silu(gate_up(m, f)) * gate_up(m, act.cols() + f);
  }
};

template <> struct kernel<swiglu_backward_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> dgate_up, mat<const T> dact, mat<const T> gate_up) {
    const index_t F = dact.cols();
    for (index_t m = 0; m < dact.rows(); ++m)
      for (index_t f = 0; f < F; ++f) {
        const T gate = gate_up(m, f), up = gate_up(m, F + f);
        dgate_up(m, f) = dact(m, f) * up * silu_derivative(gate);
        dgate_up(m, F + f) = dact(m, f) * silu(gate);
      }
  }
};

}  // namespace moeskip
