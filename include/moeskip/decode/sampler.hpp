// From logits to a distribution, and from a distribution to a token.
//   softmax(logits / temperature), cut to the top_k most likely, then to the smallest set of mass top_p
// (Holtzman et al. 2020, arXiv:1904.09751), renormalised. Temperature 0 is greedy: all mass on the most likely token,
// the lowest id among equals.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "moeskip/base/check.hpp"
#include "moeskip/ops/token_law.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Index of the largest, which must be finite; the lowest among equals. NaN and minus infinity never win. Throws
/// config_error where nothing finite does.
template <class T> int argmax(vec<const T> values) {
  index_t best = -1;
  for (index_t i = 0; i < values.size(); ++i)
    if (!std::isnan(values[i]) && (best < 0 || values[i] > values[best])) best = i;
  MOESKIP_CHECK(config_error, best >= 0 && std::isfinite(values[best]),
                "logits are not finite: weights are damaged or diverged");
  return int(best);
}

/// Probability that softmax(logits) gives the most likely token. Terms that could not change it by a thousandth of a
/// percent each are left out.
template <class T> double top_probability(vec<const T> logits) {
  const T best = logits[argmax(logits)];
  double total = 0;
  for (const T x : logits)
    if (x - best > T(-12)) total += std::exp(double(x - best));
  return 1 / total;
}

/// Makes distributions; keeps its scratch between calls.
class sampler {
 public:
  /// Throws config_error for options that mean nothing.
  explicit sampler(const sampling& options) : options_(options) {
    MOESKIP_CHECK(config_error, options.temperature >= 0 && std::isfinite(options.temperature),
                  "sampling.temperature must be 0 (greedy) or more, got ", options.temperature);
    MOESKIP_CHECK(config_error, options.top_p > 0 && options.top_p <= 1, "sampling.top_p must be in (0, 1], got ",
                  options.top_p);
    MOESKIP_CHECK(config_error, options.top_k >= 0, "sampling.top_k must be 0 (no limit) or more, got ", options.top_k);
  }
  const sampling& options() const { return options_; }

  /// p (V) = the distribution that tokens are drawn from, given logits (V).
  template <class T> void distribution(vec<T> p, vec<const T> logits) {
    const int best = argmax(logits);
    std::fill(p.begin(), p.end(), T{});
    if (options_.greedy()) return void(p[best] = T(1));
    for (index_t i = 0; i < p.size(); ++i)
      p[i] = std::isnan(logits[i]) ? T{} : T(std::exp((logits[i] - logits[best]) / T(options_.temperature)));
    if (options_.top_k > 0 || options_.top_p < 1) cut(p);
    const T total = std::accumulate(p.begin(), p.end(), T{});
    for (T& x : p) x /= total;
  }

  /// The token at height u in [0, 1) of the cumulative distribution.
  template <class T> static int pick(vec<const T> p, double u) {
    double below = 0;
    index_t last = 0;
    for (index_t i = 0; i < p.size(); ++i) {
      if (p[i] <= 0) continue;
      below += double(p[i]), last = i;
      if (u < below) return int(i);
    }
    return int(last);  // rounding left the sum a little under one
  }

 private:
  template <class T> void cut(vec<T> p) {
    order_.resize(std::size_t(p.size()));
    std::iota(order_.begin(), order_.end(), 0);
    const auto likelier = [&](int a, int b) { return p[a] != p[b] ? p[a] > p[b] : a < b; };
    std::size_t keep = order_.size();
    if (options_.top_k > 0) keep = std::min(keep, std::size_t(options_.top_k));
    if (keep < order_.size())
      std::nth_element(order_.begin(), order_.begin() + std::ptrdiff_t(keep), order_.end(), likelier);
    double total = 0, mass = 0;
    for (std::size_t i = 0; i < keep; ++i) total += double(p[order_[i]]);
    // Most of the mass is in few tokens: they are sorted a growing number at a time, until top_p is reached.
    std::size_t inside = 0, sorted = 0;
    while (inside < keep && mass < double(options_.top_p) * total) {
      if (inside == sorted) {
        const std::size_t next = std::min(keep, std::max<std::size_t>(64, 4 * sorted));
        std::partial_sort(order_.begin() + std::ptrdiff_t(sorted), order_.begin() + std::ptrdiff_t(next),
                          order_.begin() + std::ptrdiff_t(keep), likelier);
        sorted = next;
      }
      mass += double(p[order_[inside++]]);
    }
    for (std::size_t i = std::max<std::size_t>(inside, 1); i < order_.size(); ++i) p[order_[i]] = T{};
  }

  sampling options_;
  std::vector<int> order_;
};

}  // namespace moeskip
