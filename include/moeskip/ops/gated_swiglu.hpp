// act = a · silu(b) · up, where a row of `products` holds a, b and up side by side: the SwiGLU of one matrix of twice
// the width, gating the product of another one.                                      OpenMoE, arXiv:2402.01739
//   products (M, 3F)   act (M, F)
// Forward only: models with it can be run, not trained.
#pragma once

#include "moeskip/base/math.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Throws shape_error.
struct gated_swiglu_t {
  static constexpr const char* name = "gated_swiglu";
  template <class B> void operator()(B& b, mat<scalar_t<B>> act, mat<const scalar_t<B>> products) const {
    expect_shape(name, "products", products, act.rows(), 3 * act.cols());
    run_kernel<gated_swiglu_t>(b, act, products);
  }
};
inline constexpr gated_swiglu_t gated_swiglu{};

template <> struct kernel<gated_swiglu_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> act, mat<const T> products) {
    const index_t F = act.cols();
    for (index_t m = 0; m < act.rows(); ++m)
      for (index_t f = 0; f < F; ++f) act(m, f) = products(m, f) * silu(products(m, F + f)) * products(m, 2 * F + f);
  }
};

}  // namespace moeskip
