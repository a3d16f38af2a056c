// Elementwise work on long vectors: sums of gradients, and the weights that a backend stores.
#pragma once

#include <algorithm>

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// y += x.
struct accumulate_t {
  static constexpr const char* name = "accumulate";
  template <class B> void operator()(B& b, vec<scalar_t<B>> y, vec<const scalar_t<B>> x) const {
    expect_shape(name, "x", x, y.size());
    run_kernel<accumulate_t>(b, y, x);
  }
};
inline constexpr accumulate_t accumulate{};

/// y = x.
struct copy_into_t {
  static constexpr const char* name = "copy_into";
  template <class B> void operator()(B& b, vec<scalar_t<B>> y, vec<const scalar_t<B>> x) const {
    expect_shape(name, "x", x, y.size());
    run_kernel<copy_into_t>(b, y, x);
  }
};
inline constexpr copy_into_t copy_into{};

/// out = a · x + b · y; out may be x or y.
struct combine_t {
  static constexpr const char* name = "combine";
  template <class B> void operator()(B& backend, vec<scalar_t<B>> out, double a, vec<const scalar_t<B>> x, double b,
                                     vec<const scalar_t<B>> y) const {
    expect_shape(name, "x", x, out.size());
    expect_shape(name, "y", y, out.size());
    run_kernel<combine_t>(backend, out, a, x, b, y);
  }
};
inline constexpr combine_t combine{};

/// y = value, everywhere.
struct fill_with_t {
  static constexpr const char* name = "fill_with";
  template <class B> void operator()(B& b, vec<scalar_t<B>> y, double value) const {
    run_kernel<fill_with_t>(b, y, value);
  }
};
inline constexpr fill_with_t fill_with{};

/// Σ x², in double.
struct sum_of_squares_t {
  static constexpr const char* name = "sum_of_squares";
  template <class B> double operator()(B& b, vec<const scalar_t<B>> x) const {
    double sum = 0;
    run_kernel<sum_of_squares_t>(b, sum, x);
    return sum;
  }
};
inline constexpr sum_of_squares_t sum_of_squares{};

/// Rounds to the type that weights are stored in.
struct store_weights_t {
  static constexpr const char* name = "store_weights";
  template <class B> void operator()(B& b, vec<weight_t<B>> w, vec<const scalar_t<B>> master) const {
    expect_shape(name, "w", w, master.size());
    run_kernel<store_weights_t>(b, w, master);
  }
};
inline constexpr store_weights_t store_weights{};

template <> struct kernel<accumulate_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> y, vec<const T> x) {
    for (index_t i = 0; i < y.size(); ++i) y[i] += x[i];
  }
};

template <> struct kernel<copy_into_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> y, vec<const T> x) {
    std::copy(x.begin(), x.end(), y.begin());
  }
};

template <> struct kernel<combine_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> out, double a, vec<const T> x, double b, vec<const T> y) {
    using R = real_t<T>;
    for (index_t i = 0; i < out.size(); ++i) out[i] = R(a) * x[i] + R(b) * y[i];
  }
};

template <> struct kernel<fill_with_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> y, double value) {
    std::fill(y.begin(), y.end(), T(real_t<T>(value)));
  }
};

template <> struct kernel<sum_of_squares_t, on_reference> {
  template <class B, class T> static void run(B&, double& sum, vec<const T> x) {
    for (const T& value : x) sum += double(real_part(value)) * double(real_part(value));
  }
};

template <> struct kernel<store_weights_t, on_reference> {
  template <class B, class W, class T> static void run(B&, vec<W> w, vec<const T> master) {
    for (index_t i = 0; i < w.size(); ++i) w[i] = W(master[i]);
  }
};

}  // namespace moeskip
