// Learn then Test: choosing a number with a guarantee (Angelopoulos et al., arXiv:2110.01052). n independent losses in
// [0, 1] with mean r̂ and expectation R, α tolerated. A p-value of "R > α" is the smaller of
//   Hoeffding  exp(−n h(min(r̂, α), α)),  h(a, b) = a log(a/b) + (1 − a) log((1 − a)/(1 − b))
//   Bentkus    e · P(Bin(n, α) <= ⌈n r̂⌉)
// Fixed-sequence testing goes through candidates from the safest on, each at the full level δ, and ends at the first
// that fails: P(any that passed has R > α) <= δ, however many candidates there are.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <span>

#include "moeskip/base/check.hpp"

namespace moeskip {

/// P(Bin(n, p) <= k), p in (0, 1).
inline double binomial_cdf(long long k, long long n, double p) {
  if (k < 0) return 0;
  if (k >= n) return 1;
  double sum = 0;
  for (long long i = 0; i <= k; ++i)
    sum += std::exp(std::lgamma(double(n) + 1) - std::lgamma(double(i) + 1) - std::lgamma(double(n - i) + 1) +
                    double(i) * std::log(p) + double(n - i) * std::log1p(-p));
  return std::min(sum, 1.0);
}

/// The p-value of Hoeffding's bound, for n losses that sum up to `total`.
inline double hoeffding_p(double total, long long n, double tolerance) {
  const double a = std::min(total / double(n), tolerance), b = tolerance;
  const double h = (a > 0 ? a * std::log(a / b) : 0) + (1 - a) * std::log((1 - a) / (1 - b));
  return std::exp(-double(n) * h);
}

/// That of Bentkus's.
inline double bentkus_p(double total, long long n, double tolerance) {
  return std::min(1.0, std::numbers::e * binomial_cdf((long long)(std::ceil(total)), n, tolerance));
}

/// The smaller of the two. Throws config_error where the numbers mean nothing.
inline double hoeffding_bentkus_p(double total, long long n, double tolerance) {
  MOESKIP_CHECK(config_error, n >= 1, "a p-value needs at least 1 loss, got ", n);
  MOESKIP_CHECK(config_error, tolerance > 0 && tolerance < 1, "tolerance must be between 0 and 1, got ", tolerance);
  MOESKIP_CHECK(config_error, total >= 0 && total <= double(n), "losses must lie in [0, 1]: expected a sum from 0 to ",
                n, ", got ", total);
  return std::min(hoeffding_p(total, n, tolerance), bentkus_p(total, n, tolerance));
}

/// How many of the candidates pass, whose p-values stand in the order of testing: those before the first above level.
inline int fixed_sequence(std::span<const double> p_values, double level) {
  return int(std::ranges::find_if(p_values, [&](double p) { return !(p <= level); }) - p_values.begin());
}

}  // namespace moeskip
