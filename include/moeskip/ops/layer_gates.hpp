// Gates of layers while they are learned (parts/layer_skip/gate.hpp): how open each row's is, the stream that goes on
// behind, and their gradient.
//   s = logit + open    chance = sigmoid(s)    g = sigmoid((s + noise) / temperature)    y = x + g · (made − x)
//   noise: logistic, from (seed, step, layer, token) alone
//   N rows   D width of the stream
#pragma once

#include <cmath>

#include "moeskip/base/math.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// From logits to gates, without the noise.
struct gate_slope {
  float open, temperature;
  template <class T> MOESKIP_HD T score(const T& logit) const { return logit + T(open); }
  template <class T> MOESKIP_HD T opened(const T& noisy_score) const { return sigmoid(noisy_score / T(temperature)); }
};

/// What one layer of a training step draws.
struct gate_draw {
  seed from;
  std::uint64_t step;
  int layer;
  token_rows rows;  // (N) of the call

  MOESKIP_HD double noise(index_t n) const {
    const draws draw{from, stream::layer_gates};
    const double u = draw.uniform_double(step, std::uint64_t(layer), rows.id(n)), least = 1e-9;
    const double inside = u < least ? least : u > 1 - least ? 1 - least : u;
    return std::log(inside / (1 - inside));
  }
};

/// How gates are drawn to their share: loss += pull · (mean chance − keep)².
template <class T> struct gate_pull {
  vec<const T> chances;  // (1) mean chances of all gates, added up
  int gates;             // how many they are
  float keep, pull;

  /// Its gradient by the chance of one of a gate's N rows.
  MOESKIP_HD T of_row(index_t N) const {
    const T all = T(real_t<T>(gates));
    return T(real_t<T>(2) * pull) * (chances[0] / all - T(keep)) / (all * T(real_t<T>(N)));
  }
};

/// opened (N) = g, chances (1) += the mean chance, of logit (N, 1). Throws shape_error.
struct open_gates_t {
  static constexpr const char* name = "open_gates";
  template <class B> void operator()(B& b, vec<scalar_t<B>> opened, vec<scalar_t<B>> chances,
                                     mat<const scalar_t<B>> logit, const gate_slope& slope,
                                     const gate_draw& draw) const {
    expect_shape(name, "opened", opened, logit.rows());
    expect_shape(name, "chances", chances, 1);
    expect_shape(name, "logit", logit, logit.rows(), 1);
    expect_shape(name, "rows.position", draw.rows.position, logit.rows());
    expect_shape(name, "rows.slot", draw.rows.slot, logit.rows());
    run_kernel<open_gates_t>(b, opened, chances, logit, slope, draw);
  }
};
inline constexpr open_gates_t open_gates{};

/// y (N, D) = x + opened (N) · (made − x). Throws shape_error.
struct pass_gates_t {
  static constexpr const char* name = "pass_gates";
  template <class B> void operator()(B& b, mat<scalar_t<B>> y, mat<const scalar_t<B>> x, mat<const scalar_t<B>> made,
                                     vec<const scalar_t<B>> opened) const {
    expect_shape(name, "y", y, x.rows(), x.cols());
    expect_shape(name, "made", made, x.rows(), x.cols());
    expect_shape(name, "opened", opened, x.rows());
    run_kernel<pass_gates_t>(b, y, x, made, opened);
  }
};
inline constexpr pass_gates_t pass_gates{};

/// d (N, D): on entry the gradient of y, on return that of made; past (N, D) = that of x, which went by, dlogit (N, 1) =
/// that of the logit, the pull included. Throws shape_error.
struct pass_gates_backward_t {
  static constexpr const char* name = "pass_gates_backward";
  template <class B> void operator()(B& b, mat<scalar_t<B>> d, mat<scalar_t<B>> past, mat<scalar_t<B>> dlogit,
                                     mat<const scalar_t<B>> x, mat<const scalar_t<B>> made,
                                     vec<const scalar_t<B>> opened, mat<const scalar_t<B>> logit,
                                     const gate_slope& slope, const gate_pull<scalar_t<B>>& pull) const {
    expect_shape(name, "d", d, x.rows(), x.cols());
    expect_shape(name, "past", past, x.rows(), x.cols());
    expect_shape(name, "made", made, x.rows(), x.cols());
    expect_shape(name, "opened", opened, x.rows());
    expect_shape(name, "logit", logit, x.rows(), 1);
    expect_shape(name, "dlogit", dlogit, x.rows(), 1);
    expect_shape(name, "chances", pull.chances, 1);
    run_kernel<pass_gates_backward_t>(b, d, past, dlogit, x, made, opened, logit, slope, pull);
  }
};
inline constexpr pass_gates_backward_t pass_gates_backward{};

template <> struct kernel<open_gates_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> opened, vec<T> chances, mat<const T> logit,
                                              const gate_slope& slope, const gate_draw& draw) {
    T sum{};
    for (index_t n = 0; n < opened.size(); ++n) {
      const T score = slope.score(logit(n, 0));
      opened[n] = slope.opened(score + T(real_t<T>(draw.noise(n))));
      sum += sigmoid(score);
    }
    chances[0] += sum / T(real_t<T>(opened.size()));
  }
};

template <> struct kernel<pass_gates_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> y, mat<const T> x, mat<const T> made, vec<const T> opened) {
    rows(y, x, made, opened, 0, x.rows());
  }
  /// Rows [first, last).
  template <class T>
  static void rows(mat<T> y, mat<const T> x, mat<const T> made, vec<const T> opened, index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      for (index_t i = 0; i < x.cols(); ++i) y(n, i) = x(n, i) + opened[n] * (made(n, i) - x(n, i));
  }
};

template <> struct kernel<pass_gates_backward_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> d, mat<T> past, mat<T> dlogit, mat<const T> x,
                                              mat<const T> made, vec<const T> opened, mat<const T> logit,
                                              const gate_slope& slope, const gate_pull<T>& pull) {
    rows(d, past, dlogit, x, made, opened, logit, slope, pull, 0, x.rows());
  }
  /// Rows [first, last).
  template <class T> static void rows(mat<T> d, mat<T> past, mat<T> dlogit, mat<const T> x, mat<const T> made,
                                      vec<const T> opened, mat<const T> logit, const gate_slope& slope,
                                      const gate_pull<T>& pull, index_t first, index_t last) {
    for (index_t n = first; n < last; ++n) {
      const T g = opened[n];
      T dg{};
      for (index_t i = 0; i < x.cols(); ++i) {
        dg += d(n, i) * (made(n, i) - x(n, i));
        past(n, i) = (T(1) - g) * d(n, i);
        d(n, i) *= g;
      }
      dlogit(n, 0) = of_logit(dg, g, logit(n, 0), slope, pull.of_row(x.rows()));
    }
  }
  /// From the gradient of a row's g.
  template <class T>
  MOESKIP_HD static T of_logit(const T& dg, const T& g, const T& logit, const gate_slope& slope, const T& pull) {
    return dg * g * (T(1) - g) / T(slope.temperature) + pull * sigmoid_derivative(slope.score(logit));
  }
};

}  // namespace moeskip
