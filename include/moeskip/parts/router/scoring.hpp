// What routers are made of: softmax over the living experts, the choice of the best, and their derivatives. Per token,
// on any scalar, host and device.
#pragma once

#include "moeskip/base/math.hpp"
#include "moeskip/concepts/router.hpp"

namespace moeskip::router {

/// t.probability (E) = softmax of logits (E) over the living experts; 0 for the others.
template <class T> MOESKIP_HD void softmax_alive(const routed_token<T>& t, const T* logits) {
  softmax(t.probability, logits, t.experts, [&](index_t e) { return t.alive->contains(int(e)); });
}

/// dlogits (E) += the gradient that dprobability (E) sends through softmax_alive: p (dp − Σ p dp).
template <class T> MOESKIP_HD void softmax_alive_backward(const routed_token<T>& t, const T* dprobability, T* dlogits) {
  T mean{};
  for (int e = 0; e < t.experts; ++e) mean += t.probability[e] * dprobability[e];
  for (int e = 0; e < t.experts; ++e) dlogits[e] += t.probability[e] * (dprobability[e] - mean);
}

/// t.chosen (K) = the K living experts with the highest scores (E) plus selection bias, best first; among equals the
/// lower id; -1 where fewer are alive.
template <int K, class T> MOESKIP_HD void choose_best(const routed_token<T>& t, const T* scores) {
  const auto score = [&](int e) { return real_part(scores[e]) + (t.bias ? real_part(t.bias[e]) : real_t<T>(0)); };
  for (int k = 0; k < K; ++k) {
    int best = -1;
    for (int e = 0; e < t.experts; ++e) {
      if (!t.alive->contains(e)) continue;
      bool taken = false;
      for (int j = 0; j < k; ++j) taken = taken || t.chosen[j] == e;
      if (!taken && (best < 0 || score(e) > score(best))) best = e;
    }
    t.chosen[k] = best;
  }
}

/// Gates that are the chosen experts' probabilities over all experts.
template <int K, class T> MOESKIP_HD void weigh_by_probability(const routed_token<T>& t) {
  for (int k = 0; k < K; ++k) t.gate[k] = t.chosen[k] < 0 ? T{} : t.probability[t.chosen[k]];
}
/// Their gradient, added to dprobability (E).
template <int K, class T>
MOESKIP_HD void weigh_by_probability_backward(const routed_token<T>& t, const T* dgate, T* dprobability) {
  for (int k = 0; k < K; ++k)
    if (t.chosen[k] >= 0) dprobability[t.chosen[k]] += dgate[k];
}

/// Gates that are the softmax over the K chosen of logits (E). That is what dividing their probabilities by the sum
/// gives too, but for chosen ones so unlikely that their probabilities are 0.
template <int K, class T> MOESKIP_HD void weigh_by_softmax(const routed_token<T>& t, const T* logits) {
  for (int k = 0; k < K; ++k) t.gate[k] = logits[t.chosen[k]];
  softmax(t.gate, t.gate, K);
}
/// Their gradient, added to dlogits (E).
template <int K, class T>
MOESKIP_HD void weigh_by_softmax_backward(const routed_token<T>& t, const T* dgate, T* dlogits) {
  T mean{};  // Σ gate dgate
  for (int k = 0; k < K; ++k) mean += t.gate[k] * dgate[k];
  for (int k = 0; k < K; ++k) dlogits[t.chosen[k]] += t.gate[k] * (dgate[k] - mean);
}

/// What is wrong with the weights of the auxiliary losses; empty where nothing is.
constexpr std::string_view auxiliary_problem(float balance_loss, float z_loss) {
  if (!(balance_loss >= 0 && balance_loss < 1e6f)) return "router.balance_loss must be 0 or more, and finite";
  if (!(z_loss >= 0 && z_loss < 1e6f)) return "router.z_loss must be 0 or more, and finite";
  return {};
}

}  // namespace moeskip::router
