// Speculative sampling: the accepted text has exactly the full model's distribution.
//   accept a drafted x ~ q with probability min(1, p(x)/q(x)); after a rejection draw from max(0, p − q), normalised
// Leviathan et al. 2023, arXiv:2211.17192; Chen et al. 2023, arXiv:2302.01318. Greedy distributions put all mass on one
// token, and the same rule becomes: accept exactly what the full model would have said.
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/tensor/view.hpp"

namespace moeskip::acceptance {

struct exact {
  static constexpr std::string_view name = "exact";

  template <class T> bool accepts(vec<const T> p, vec<const T> q, int token, double u) const {
    return u * double(q[token]) < double(p[token]);
  }
  /// max(0, p − q), normalised; where rounding leaves nothing (p equals q), p itself.
  template <class T> void residual(vec<T> out, vec<const T> p, vec<const T> q) const {
    double total = 0;
    for (index_t i = 0; i < out.size(); ++i) total += double(out[i] = std::max(T{}, p[i] - q[i]));
    if (total <= 0) return void(std::copy(p.begin(), p.end(), out.begin()));
    for (T& mass : out) mass = T(double(mass) / total);
  }
};

}  // namespace moeskip::acceptance
