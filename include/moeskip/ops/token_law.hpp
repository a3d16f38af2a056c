// What a row of logits says about the next token, in a few numbers that a device keeps instead of V probabilities:
//   p_i = e^(slope (logit_i − highest)) / total  of the tokens that are kept, 0 of the others;  slope = 1 / temperature
// Kept are the top_k most likely, and of these the smallest set of mass top_p (Holtzman et al. 2020, arXiv:1904.09751);
// among equals, lower ids. Temperature 0 is greedy: all mass on the most likely token. decode/sampler.hpp makes the same
// distributions as arrays.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "moeskip/base/rng.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct sampling {
  float temperature = 0.f;  // 0: greedy
  int top_k = 0;            // 0: no limit
  float top_p = 1.f;
  moeskip::seed seed{0};

  bool greedy() const { return temperature <= 0; }
  bool cuts() const { return top_k > 0 || top_p < 1; }
  friend bool operator==(const sampling&, const sampling&) = default;
};

template <class T> struct token_law {
  int best = -1;          // the most likely token, the lowest id among equals; -1: no logit is a finite number
  T highest{}, second{};  // its logit, and the highest of the others
  T mass{}, weighted{};   // for exit rules, if they ask: Σ e^d and Σ d e^d over all tokens, d = logit − highest
  T slope{};              // 1 / temperature; 0: greedy
  T total{};              // Σ e^(slope d) over the tokens that are kept
  T least{};              // kept: logits above it, and as high as it up to the id `last`
  int last = 0;

  MOESKIP_HD bool keeps(index_t i, T logit) const { return logit > least || (logit == least && i <= last); }
  /// p_i times total.
  MOESKIP_HD T weight(index_t i, T logit) const {
    if (slope == T{}) return i == best ? T(1) : T{};
    return keeps(i, logit) ? T(std::exp(slope * (logit - highest))) : T{};
  }
  MOESKIP_HD T probability(index_t i, T logit) const { return weight(i, logit) / total; }
};

/// laws (N) of logits (N, V). for_rules: whether mass and weighted are made, a pass more over the vocabulary. NaN never
/// wins and is never kept. Throws shape_error.
struct token_laws_t {
  static constexpr const char* name = "token_laws";
  template <class B> void operator()(B& b, vec<token_law<scalar_t<B>>> laws, mat<const scalar_t<B>> logits,
                                     const sampling& s, bool for_rules = true) const {
    expect_shape(name, "laws", laws, logits.rows());
    run_kernel<token_laws_t>(b, laws, logits, s, for_rules);
  }
};
inline constexpr token_laws_t token_laws{};

template <> struct kernel<token_laws_t, on_reference> {
  template <class B, class T>
  static void run(B&, vec<token_law<T>> laws, mat<const T> logits, const sampling& s, bool for_rules) {
    for (index_t n = 0; n < logits.rows(); ++n) laws[n] = of(logits.row(n), s, for_rules);
  }

 private:
  template <class T> static token_law<T> of(vec<const T> logits, const sampling& s, bool for_rules) {
    constexpr T none = -std::numeric_limits<T>::infinity();
    token_law<T> law{.highest = none, .second = none, .least = none, .last = std::numeric_limits<int>::max()};
    std::vector<int> order;  // of the numbers among them
    for (index_t i = 0; i < logits.size(); ++i)
      if (!std::isnan(logits[i])) order.push_back(int(i));
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
    if (order.empty() || !std::isfinite(logits[order[0]])) return law;
    law.best = order[0], law.highest = logits[law.best];
    if (order.size() > 1) law.second = logits[order[1]];
    law.slope = s.greedy() ? T{} : T(1) / T(s.temperature);
    for (const int i : for_rules ? order : std::vector<int>{}) {
      const T d = logits[i] - law.highest, w = std::exp(d);
      law.mass += w;
      if (w > 0) law.weighted += d * w;
    }
    std::size_t keep = s.top_k > 0 ? std::min(order.size(), std::size_t(s.top_k)) : order.size();
    const auto total_of = [&](std::size_t count) {
      T total{};
      for (std::size_t i = 0; i < count; ++i) total += law.weight(order[i], logits[order[i]]);
      return total;
    };
    if (const T goal = T(s.top_p) * total_of(keep); s.top_p < 1) {
      std::size_t count = 1;
      for (T mass = total_of(1); count < keep && mass < goal; ++count) mass += total_of(count + 1) - total_of(count);
      keep = count;
    }
    law.total = s.greedy() ? T(1) : total_of(keep);
    if (s.cuts()) law.least = logits[order[keep - 1]], law.last = order[keep - 1];
    return law;
  }
};

}  // namespace moeskip
