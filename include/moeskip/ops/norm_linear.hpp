// Normalise, then project: the head of every sublayer.
//   h = rms_norm(x) · gain,   y = h wᵀ         x, h (N, I)   w (O, I)   y (N, O)
// A stage of its own so that a backend may fuse it; by default it is composed of its two halves.
#pragma once

#include "moeskip/ops/linear.hpp"
#include "moeskip/ops/rms_norm.hpp"

namespace moeskip {

struct norm_linear_t {
  static constexpr const char* name = "norm_linear";
  template <class B> void operator()(B& b, mat<scalar_t<B>> y, mat<scalar_t<B>> h, mat<const scalar_t<B>> x,
                                     vec<const weight_t<B>> gain, mat<const weight_t<B>> w, float eps) const {
    if constexpr (has_kernel<norm_linear_t, B>) {
      run_kernel<norm_linear_t>(b, y, h, x, gain, w, eps);
    } else {
      rms_norm(b, h, x, gain, eps);
      linear(b, y, h, w);
    }
  }
};
inline constexpr norm_linear_t norm_linear{};

/// dx(N,I) += …, dgain += …, dw += …; dh (N, I) is scratch and ends as the gradient of h.
struct norm_linear_backward_t {
  static constexpr const char* name = "norm_linear_backward";
  template <class B> void operator()(B& b, mat<scalar_t<B>> dx, mat<scalar_t<B>> dh, vec<scalar_t<B>> dgain,
                                     mat<scalar_t<B>> dw, mat<const scalar_t<B>> dy, mat<const scalar_t<B>> x,
                                     mat<const scalar_t<B>> h, vec<const weight_t<B>> gain, mat<const weight_t<B>> w,
                                     float eps) const {
    if constexpr (has_kernel<norm_linear_backward_t, B>) {
      run_kernel<norm_linear_backward_t>(b, dx, dh, dgain, dw, dy, x, h, gain, w, eps);
    } else {
      linear_backward(b, dh, dw, dy, h, w);
      rms_norm_backward(b, dx, dgain, dh, x, gain, eps);
    }
  }
};
inline constexpr norm_linear_backward_t norm_linear_backward{};

}  // namespace moeskip
