// Small scalar math that policies, ops and kernels share, on float, double or std::complex<double>.
//   sigmoid(x) = 1 / (1 + e^-x)     silu(x) = x sigmoid(x)     log_sum_exp(x) = log sum_i e^(x_i)
//   softmax(x)_i = e^(x_i) / sum_j e^(x_j)
// Nothing overflows: exponents are never positive. Branches and maxima look at real parts only, so that
// complex-step derivatives follow the branch of the real evaluation. Sums run in index order, in the scalar
// itself.
#pragma once

#include <cmath>
#include <limits>

#include "moeskip/base/config.hpp"
#include "moeskip/base/lanes.hpp"
#include "moeskip/base/scalar.hpp"

namespace moeskip {

namespace detail {

/// sigmoid(x) and sigmoid(-x) from one exponential: neither loses digits where the other is close to 1.
template <Scalar T> struct sigmoid_pair {
  T plus, minus;

  MOESKIP_HD explicit sigmoid_pair(const T& x) {
    using std::exp;
    const bool positive = real_part(x) >= 0;
    const T e = exp(positive ? -x : x);  // 0 < |e| <= 1
    const T large = T(1) / (T(1) + e), small = e * large;
    plus = positive ? large : small;
    minus = positive ? small : large;
  }
};

/// The predicate that keeps every index.
struct keep_all {
  MOESKIP_HD constexpr bool operator()(index_t) const { return true; }
};

/// The largest real part among the kept x; minus infinity where none is kept.
template <Scalar T, class Keep, class By = one_thread>
MOESKIP_HD real_t<T> kept_max(const T* x, index_t n, const Keep& keep, const By& by = {}) {
  constexpr real_t<T> lowest = -std::numeric_limits<real_t<T>>::infinity();
  real_t<T> largest = lowest;
  for (index_t i = by.lane(); i < n; i += by.lanes())
    if (keep(i) && real_part(x[i]) > largest) largest = real_part(x[i]);
  return by.max(largest);
}

}  // namespace detail

template <Scalar T> MOESKIP_HD T sigmoid(const T& x) { return detail::sigmoid_pair<T>(x).plus; }

/// d sigmoid / dx = sigmoid(x) sigmoid(-x)
template <Scalar T> MOESKIP_HD T sigmoid_derivative(const T& x) {
  const detail::sigmoid_pair<T> s(x);
  return s.plus * s.minus;
}

template <Scalar T> MOESKIP_HD T silu(const T& x) { return x * sigmoid(x); }

/// d silu / dx = sigmoid(x) (1 + x sigmoid(-x))
template <Scalar T> MOESKIP_HD T silu_derivative(const T& x) {
  const detail::sigmoid_pair<T> s(x);
  return s.plus * (T(1) + x * s.minus);
}

/// log of the sum of e^x over the kept ones of x (n); minus infinity where none is kept.
template <Scalar T, class Keep = detail::keep_all>
MOESKIP_HD T log_sum_exp(const T* x, index_t n, const Keep& keep = {}) {
  using std::exp, std::log;
  const real_t<T> largest = detail::kept_max(x, n, keep);
  constexpr real_t<T> lowest = -std::numeric_limits<real_t<T>>::infinity();
  if (largest == lowest) return T(lowest);  // an empty sum; subtracting the maximum would give NaN
  T sum{};
  for (index_t i = 0; i < n; ++i)
    if (keep(i)) sum += exp(x[i] - largest);
  return log(sum) + largest;
}

/// out (n) = softmax over the kept ones of in (n), and 0 for the others; all 0 where none is kept (or all
/// kept are minus infinity). out may be in. Lanes that share the loops read and write numbers of their own.
template <Scalar T, class Keep = detail::keep_all, class By = one_thread>
MOESKIP_HD void softmax(T* out, const T* in, index_t n, const Keep& keep = {}, const By& by = {}) {
  using std::exp;
  const real_t<T> largest = detail::kept_max(in, n, keep, by);
  constexpr real_t<T> lowest = -std::numeric_limits<real_t<T>>::infinity();
  T sum{};
  for (index_t i = by.lane(); i < n; i += by.lanes()) {
    out[i] = keep(i) && largest != lowest ? T(exp(in[i] - largest)) : T{};
    sum += out[i];
  }
  sum = by.sum(sum);
  if (largest == lowest) return;
  for (index_t i = by.lane(); i < n; i += by.lanes()) out[i] /= sum;
}

}  // namespace moeskip
