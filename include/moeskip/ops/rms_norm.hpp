// Root-mean-square normalisation.   Zhang and Sennrich 2019, arXiv:1910.07467
//   y = x · r · gain,   r = 1 / sqrt(mean(x²) + eps)
//   x, y (N, D)   gain (D)
#pragma once

#include <cmath>

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct rms_norm_t {
  static constexpr const char* name = "rms_norm";
  template <class B>
  void operator()(B& b, mat<scalar_t<B>> y, mat<const scalar_t<B>> x, vec<const weight_t<B>> gain, float eps) const {
    expect_shape(name, "y", y, x.rows(), x.cols());
    expect_shape(name, "gain", gain, x.cols());
    run_kernel<rms_norm_t>(b, y, x, gain, eps);
  }
};
inline constexpr rms_norm_t rms_norm{};

/// dx(N,D) += …, dgain(D) += …. dx accumulates because the residual stream branches here: its gradient already stands
/// in dx.
struct rms_norm_backward_t {
  static constexpr const char* name = "rms_norm_backward";
  template <class B> void operator()(B& b, mat<scalar_t<B>> dx, vec<scalar_t<B>> dgain, mat<const scalar_t<B>> dy,
                                     mat<const scalar_t<B>> x, vec<const weight_t<B>> gain, float eps) const {
    expect_shape(name, "dx", dx, x.rows(), x.cols());
    expect_shape(name, "dy", dy, x.rows(), x.cols());
    expect_shape(name, "dgain", dgain, x.cols());
    expect_shape(name, "gain", gain, x.cols());
    run_kernel<rms_norm_backward_t>(b, dx, dgain, dy, x, gain, eps);
  }
};
inline constexpr rms_norm_backward_t rms_norm_backward{};

template <> struct kernel<rms_norm_t, on_reference> {
  template <class T> static T reciprocal_rms(vec<const T> x, float eps) {
    using std::sqrt;
    T squares{};
    for (const T& value : x) squares += value * value;
    return T(1) / sqrt(squares / T(real_t<T>(x.size())) + T(eps));
  }
  template <class B, class T, class W> static void run(B&, mat<T> y, mat<const T> x, vec<const W> gain, float eps) {
    for (index_t n = 0; n < x.rows(); ++n) {
      const T r = reciprocal_rms(x.row(n), eps);
      for (index_t i = 0; i < x.cols(); ++i) y(n, i) = x(n, i) * r * to<T>(gain[i]);
    }
  }
};

template <> struct kernel<rms_norm_backward_t, on_reference> {
  template <class B, class T, class W>
  static void run(B&, mat<T> dx, vec<T> dgain, mat<const T> dy, mat<const T> x, vec<const W> gain, float eps) {
    for (index_t n = 0; n < x.rows(); ++n) {
      const T r = kernel<rms_norm_t, on_reference>::reciprocal_rms(x.row(n), eps);
      T dot{};  // Σ dy · gain · x r
      for (index_t i = 0; i < x.cols(); ++i) {
        dot += dy(n, i) * to<T>(gain[i]) * x(n, i) * r;
        dgain[i] += dy(n, i) * x(n, i) * r;
      }
      const T mean = dot / T(real_t<T>(x.cols()));
      for (index_t i = 0; i < x.cols(); ++i) dx(n, i) += r * (dy(n, i) * to<T>(gain[i]) - x(n, i) * r * mean);
    }
  }
};

}  // namespace moeskip
