// Typical acceptance: LOSSY. A drafted x stands where the full model finds it likely enough, whatever proposed it:
//   p(x) > min(epsilon, delta e^(−H(p)))      H(p) = −Σ p ln p, in nats
// so the text is not distributed as the full model's: it is more often what the draft says. The most likely token
// always stands, since its probability is at least e^(−H); greedy decoding therefore stays exact. Medusa,
// arXiv:2401.10774, section 2.3.1.
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>

#include "moeskip/tensor/view.hpp"

namespace moeskip::acceptance {

struct typical {
  static constexpr std::string_view name = "typical";
  float epsilon = 0.3f;  // enough for any p
  float delta = 0.09f;   // share of e^(−H) that is enough

  constexpr std::string_view problem() const {
    if (!(epsilon > 0 && epsilon < 1)) return "typical.epsilon must be between 0 and 1, both excluded";
    if (!(delta > 0 && delta < 1)) return "typical.delta must be between 0 and 1, both excluded";
    return {};
  }

  template <class T> bool accepts(vec<const T> p, vec<const T>, int token, double) const {
    double entropy = 0;
    for (const T mass : p)
      if (mass > 0) entropy -= double(mass) * std::log(double(mass));
    return double(p[token]) > std::min(double(epsilon), double(delta) * std::exp(-entropy));
  }
  /// p itself: nothing makes up for what was accepted.
  template <class T> void residual(vec<T> out, vec<const T> p, vec<const T>) const {
    std::copy(p.begin(), p.end(), out.begin());
  }
};

}  // namespace moeskip::acceptance
