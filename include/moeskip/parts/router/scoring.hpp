// What routers are made of: softmax over the living experts, the choice of the best, and their derivatives. Per token,
// on any scalar, host and device.
#pragma once

#include "moeskip/base/math.hpp"
#include "moeskip/concepts/router.hpp"

namespace moeskip::router {

/// t.probability (E) = softmax of t.logits over the living experts; 0 for the others.
template <class T> MOESKIP_HD void softmax_alive(const routed_token<T>& t) {
  softmax(t.probability, t.logits, t.experts, [&](index_t e) { return t.alive->contains(int(e)); });
}

/// dlogits (E) += the gradient that dprobability (E) sends through softmax_alive: p (dp − Σ p dp).
template <class T> MOESKIP_HD void softmax_alive_backward(const routed_token<T>& t, const T* dprobability, T* dlogits) {
  T mean{};
  for (int e = 0; e < t.experts; ++e) mean += t.probability[e] * dprobability[e];
  for (int e = 0; e < t.experts; ++e) dlogits[e] += t.probability[e] * (dprobability[e] - mean);
}

/// t.chosen (K) = the K living experts with the highest scores (E), best first; among equals the lower id.
template <int K, class T> MOESKIP_HD void choose_best(const routed_token<T>& t, const T* scores) {
  for (int k = 0; k < K; ++k) {
    int best = -1;
    for (int e = 0; e < t.experts; ++e) {
      if (!t.alive->contains(e)) continue;
      bool taken = false;
      for (int j = 0; j < k; ++j) taken = taken || t.chosen[j] == e;
      if (!taken && (best < 0 || real_part(scores[e]) > real_part(scores[best]))) best = e;
    }
    t.chosen[k] = best;
  }
}

}  // namespace moeskip::router
