// Each row times a sigmoid of its own: y_n = sigmoid(g_n) · x_n.      x, y (N, F)   g (N, 1)
#pragma once

#include "moeskip/base/math.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Throws shape_error.
struct gate_rows_t {
  static constexpr const char* name = "gate_rows";
  template <class B>
  void operator()(B& b, mat<scalar_t<B>> y, mat<const scalar_t<B>> x, mat<const scalar_t<B>> g) const {
    expect_shape(name, "y", y, x.rows(), x.cols());
    expect_shape(name, "g", g, x.rows(), 1);
    run_kernel<gate_rows_t>(b, y, x, g);
  }
};
inline constexpr gate_rows_t gate_rows{};

/// dx(N,F) = …, which may be dy itself; dg(N,1) = …. Throws shape_error.
struct gate_rows_backward_t {
  static constexpr const char* name = "gate_rows_backward";
  template <class B> void operator()(B& b, mat<scalar_t<B>> dx, mat<scalar_t<B>> dg, mat<const scalar_t<B>> dy,
                                     mat<const scalar_t<B>> x, mat<const scalar_t<B>> g) const {
    expect_shape(name, "dx", dx, x.rows(), x.cols());
    expect_shape(name, "dy", dy, x.rows(), x.cols());
    expect_shape(name, "dg", dg, x.rows(), 1);
    expect_shape(name, "g", g, x.rows(), 1);
    run_kernel<gate_rows_backward_t>(b, dx, dg, dy, x, g);
  }
};
inline constexpr gate_rows_backward_t gate_rows_backward{};

template <> struct kernel<gate_rows_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> y, mat<const T> x, mat<const T> g) {
    for (index_t n = 0; n < x.rows(); ++n) {
      const T gate = sigmoid(g(n, 0));
      for (index_t f = 0; f < x.cols(); ++f) y(n, f) = gate * x(n, f);
    }
  }
};

template <> struct kernel<gate_rows_backward_t, on_reference> {
  template <class B, class T>
  static void run(B&, mat<T> dx, mat<T> dg, mat<const T> dy, mat<const T> x, mat<const T> g) {
    for (index_t n = 0; n < x.rows(); ++n) {
      const T gate = sigmoid(g(n, 0));
      T sum{};
      for (index_t f = 0; f < x.cols(); ++f) {
        sum += dy(n, f) * x(n, f);
        dx(n, f) = gate * dy(n, f);
      }
      dg(n, 0) = sum * sigmoid_derivative(g(n, 0));
    }
  }
};

}  // namespace moeskip
