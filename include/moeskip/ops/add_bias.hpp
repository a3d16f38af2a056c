// The same numbers added to every row: y_n += bias.        y (N, P)   bias (P)
#pragma once

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Throws shape_error.
struct add_bias_t {
  static constexpr const char* name = "add_bias";
  template <class B> void operator()(B& b, mat<scalar_t<B>> y, vec<const weight_t<B>> bias) const {
    expect_shape(name, "bias", bias, y.cols());
    run_kernel<add_bias_t>(b, y, bias);
  }
};
inline constexpr add_bias_t add_bias{};

/// dbias(P) += the sum of the rows of dy(N,P), in their order. Throws shape_error.
struct add_bias_backward_t {
  static constexpr const char* name = "add_bias_backward";
  template <class B> void operator()(B& b, vec<scalar_t<B>> dbias, mat<const scalar_t<B>> dy) const {
    expect_shape(name, "dbias", dbias, dy.cols());
    run_kernel<add_bias_backward_t>(b, dbias, dy);
  }
};
inline constexpr add_bias_backward_t add_bias_backward{};

template <> struct kernel<add_bias_t, on_reference> {
  template <class B, class T, class W> static void run(B&, mat<T> y, vec<const W> bias) {
    for (index_t n = 0; n < y.rows(); ++n)
      for (index_t i = 0; i < y.cols(); ++i) y(n, i) += to<T>(bias[i]);
  }
};

template <> struct kernel<add_bias_backward_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> dbias, mat<const T> dy) {
    for (index_t n = 0; n < dy.rows(); ++n)
      for (index_t i = 0; i < dy.cols(); ++i) dbias[i] += dy(n, i);
  }
};

}  // namespace moeskip
