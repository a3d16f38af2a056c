// What routers are made of: softmax over the living experts, the choice of the best, and their derivatives. Per token,
// on any scalar, host and device.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <string_view>

#include "moeskip/base/math.hpp"
#include "moeskip/concepts/router.hpp"

namespace moeskip::router {

/// f(by) with those that make t: the lanes of a warp, or one_thread. No scalar but float is made by lanes.
template <class T, class F> MOESKIP_HD auto together(const routed_token<T>& t, F&& f) {
  if constexpr (std::same_as<T, float>)
    if (t.by) [[unlikely]]
      return f(t.by);
  return f(one_thread{});
}

/// t.probability (E) = softmax of logits (E) over the living experts; 0 for the others.
template <class T> MOESKIP_HD void softmax_alive(const routed_token<T>& t, const T* logits) {
  together(t, [&](const auto& by) {
    softmax(
        t.probability, logits, t.experts, [&](index_t e) { return t.alive->contains(int(e)); }, by);
    by.sync();
  });
}

/// dlogits (E) += the gradient that dprobability (E) sends through softmax_alive: p (dp − Σ p dp).
template <class T> MOESKIP_HD void softmax_alive_backward(const routed_token<T>& t, const T* dprobability, T* dlogits) {
  T mean{};
  for (int e = 0; e < t.experts; ++e) mean += t.probability[e] * dprobability[e];
  for (int e = 0; e < t.experts; ++e) dlogits[e] += t.probability[e] * (dprobability[e] - mean);
}

/// choose_best by the lanes of a warp: each finds the best of its own, then they compare.
template <int K, class Score> MOESKIP_HD void choose_best_of_lanes(const routed_token<float>& t, const Score& score) {
  const warp_lanes& by = t.by;
  static_assert(expert_set::capacity <= 32 * warp_lanes::lanes());
  std::uint32_t open = 0;  // bit i: expert lane + 32 i may be chosen
  for (int e = by.lane(), i = 0; e < t.experts; e += by.lanes(), ++i) open |= std::uint32_t(t.alive->contains(e)) << i;
  for (int k = 0; k < K; ++k) {
    int best = -1;
    float highest = 0;
    for (std::uint32_t left = open; left; left &= left - 1) {
      const int e = by.lane() + by.lanes() * std::countr_zero(left);
      if (const float s = score(e); best < 0 || s > highest) best = e, highest = s;
    }
    best = t.chosen[k] = by.best(best, highest);
    if (by.has(best)) open &= ~(std::uint32_t{1} << best / by.lanes());
  }
}

/// t.chosen (K) = the K living experts with the highest scores (E) plus selection bias, best first; among equals the
/// lower id; -1 where fewer are alive.
template <int K, class T> MOESKIP_HD void choose_best(const routed_token<T>& t, const T* scores) {
  const auto score = [&](int e) { return real_part(scores[e]) + (t.bias ? real_part(t.bias[e]) : real_t<T>(0)); };
  if constexpr (std::same_as<T, float>)
    if (t.by) [[unlikely]]
      return choose_best_of_lanes<K>(t, score);
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
  together(t, [&](const auto& by) {
    for (int k = by.lane(); k < K; k += by.lanes()) t.gate[k] = t.chosen[k] < 0 ? T{} : t.probability[t.chosen[k]];
  });
}
/// Their gradient, added to dprobability (E).
template <int K, class T>
MOESKIP_HD void weigh_by_probability_backward(const routed_token<T>& t, const T* dgate, T* dprobability) {
  for (int k = 0; k < K; ++k)
    if (t.chosen[k] >= 0) dprobability[t.chosen[k]] += dgate[k];
}

/// Gates that are the softmax over the K chosen of logit(e).
template <int K, class T, class Logit>
MOESKIP_HD void weigh_by_softmax_of(const routed_token<T>& t, const Logit& logit) {
  together(t, [&](const auto& by) {
    for (int k = by.lane(); k < K; k += by.lanes()) t.gate[k] = logit(t.chosen[k]);
    softmax(t.gate, t.gate, K, moeskip::detail::keep_all{}, by);
  });
}
/// Gates that are the softmax over the K chosen of logits (E). That is what dividing their probabilities by the sum
/// gives too, but for chosen ones so unlikely that their probabilities are 0.
template <int K, class T> MOESKIP_HD void weigh_by_softmax(const routed_token<T>& t, const T* logits) {
  weigh_by_softmax_of<K>(t, [&](int e) { return logits[e]; });
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
