// Linear map: y = x wᵀ, optionally on top of a residual.
//   x (N, I)   w (O, I)   y (N, O)
// Backward: dx = dy w, dw += dyᵀ x.
#pragma once

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// y(N,O) = x(N,I) · w(O,I)ᵀ, plus residual(N,O) unless that is empty; y may be the residual itself.
/// On cpu, calls of 1 to 16 rows give every row the same bits whatever the other rows are. Throws shape_error.
struct linear_t {
  static constexpr const char* name = "linear";
  template <class B> void operator()(B& b, mat<scalar_t<B>> y, mat<const scalar_t<B>> x, mat<const weight_t<B>> w,
                                     mat<const scalar_t<B>> residual = {}) const {
    expect_shape(name, "w", w, y.cols(), x.cols());
    expect_shape(name, "y", y, x.rows(), w.rows());
    if (residual.data()) expect_shape(name, "residual", residual, y.rows(), y.cols());
    run_kernel<linear_t>(b, y, x, w, residual);
  }
};
inline constexpr linear_t linear{};

/// dx(N,I) = dy(N,O) · w(O,I) unless dx is empty; dw(O,I) += dyᵀ · x unless dw is empty.
struct linear_backward_t {
  static constexpr const char* name = "linear_backward";
  template <class B> void operator()(B& b, mat<scalar_t<B>> dx, mat<scalar_t<B>> dw, mat<const scalar_t<B>> dy,
                                     mat<const scalar_t<B>> x, mat<const weight_t<B>> w) const {
    expect_shape(name, "dy", dy, x.rows(), w.rows());
    if (dx.data()) expect_shape(name, "dx", dx, x.rows(), x.cols());
    if (dw.data()) expect_shape(name, "dw", dw, w.rows(), w.cols());
    run_kernel<linear_backward_t>(b, dx, dw, dy, x, w);
  }
};
inline constexpr linear_backward_t linear_backward{};

template <> struct kernel<linear_t, on_reference> {
  template <class B, class T, class W>
  static void run(B&, mat<T> y, mat<const T> x, mat<const W> w, mat<const T> residual) {
    for (index_t n = 0; n < y.rows(); ++n)
      for (index_t o = 0; o < y.cols(); ++o) {
        T sum{};
        for (index_t i = 0; i < x.cols(); ++i) sum += x(n, i) * to<T>(w(o, i));
        y(n, o) = residual.data() ? residual(n, o) + sum : sum;
      }
  }
};

template <> struct kernel<linear_backward_t, on_reference> {
  template <class B, class T, class W>
  static void run(B&, mat<T> dx, mat<T> dw, mat<const T> dy, mat<const T> x, mat<const W> w) {
    for (index_t n = 0; dx.data() && n < x.rows(); ++n)
      for (index_t i = 0; i < x.cols(); ++i) {
        T sum{};
        for (index_t o = 0; o < w.rows(); ++o) sum += dy(n, o) * to<T>(w(o, i));
        dx(n, i) = sum;
      }
    for (index_t o = 0; dw.data() && o < w.rows(); ++o)
      for (index_t n = 0; n < x.rows(); ++n)
        for (index_t i = 0; i < x.cols(); ++i) dw(o, i) += dy(n, o) * x(n, i);
  }
};

}  // namespace moeskip
