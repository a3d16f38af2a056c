// Sigmoid scores, each expert judged by itself, and experts in groups.          DeepSeek-V3, arXiv:2412.19437, 2.1.2
//   s_e = sigmoid(logit_e)     gate_k = scale · s_k / Σ_chosen s
// The choice compares s_e plus the selection bias (router::biased adds one); the gates do not see it. With groups, only
// the experts of the best `best_groups` groups can be chosen; a group counts as much as its two best experts together.
// The balance loss sees p_e = s_e / Σ_alive s.
#pragma once

#include <string_view>

#include "moeskip/parts/router/groups.hpp"

namespace moeskip::router {

template <int K> struct sigmoid_top_k {
  static constexpr std::string_view name = "sigmoid_top_k";
  static constexpr int experts_per_token = K;
  using made_by_warps = sigmoid_top_k;

  int groups = 1;              // of consecutive experts, equally large
  int best_groups = 1;         // from which experts may be chosen
  bool renormalise = true;     // divide the gates by the sum over the chosen
  float scale = 1.f;           // of the gates: "routed_scaling_factor"
  float balance_loss = 0.01f;  // 0 where a selection bias keeps the balance
  float z_loss = 0.f;

  constexpr std::string_view problem() const {
    if (const std::string_view p = groups_problem(groups, best_groups); !p.empty()) return p;
    if (!(scale > 0 && scale < 1e6f)) return "router.scale must be positive and finite";
    return auxiliary_problem(balance_loss, z_loss);
  }
  constexpr std::string_view problem(int experts) const { return groups_problem(groups, best_groups, experts, K); }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const {
    together(t, [&](const auto& by) {
      T sum(by.lane() == 0 ? least : 0.f);
      for (int e = by.lane(); e < t.experts; e += by.lanes()) {
        t.probability[e] = t.alive->contains(e) ? sigmoid(t.logits[e]) : T{};
        sum += t.probability[e];
      }
      sum = by.sum(sum);
      for (int e = by.lane(); e < t.experts; e += by.lanes()) t.probability[e] /= sum;
      by.sync();
    });
  }

  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    // p and s differ by a factor of the token; the bias is on the scale of s
    T scores[expert_set::capacity];
    together(t, [&](const auto& by) {
      for (int e = by.lane(); e < t.experts; e += by.lanes()) scores[e] = sigmoid(t.logits[e]);
    });
    choose_in_groups<K, 2>(t, scores, groups, best_groups);
  }

  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const {
    together(t, [&](const auto& by) {
      T sum(by.lane() == 0 ? least : 0.f);
      for (int k = by.lane(); k < K; k += by.lanes()) sum += t.gate[k] = sigmoid(t.logits[t.chosen[k]]);
      sum = by.sum(sum);
      for (int k = by.lane(); k < K; k += by.lanes()) t.gate[k] *= T(scale) / (renormalise ? sum : T(1));
    });
  }

  template <class T>
  MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability, T* dlogits) const {
    // through p = s / Σ s to ds, kept in dprobability
    T sum(least), mean{};
    for (int e = 0; e < t.experts; ++e) {
      sum += t.alive->contains(e) ? sigmoid(t.logits[e]) : T{};
      mean += t.probability[e] * dprobability[e];
    }
    for (int e = 0; e < t.experts; ++e) dprobability[e] = t.alive->contains(e) ? (dprobability[e] - mean) / sum : T{};
    // through the gates
    T chosen(least), through{};
    for (int k = 0; k < K; ++k) chosen += sigmoid(t.logits[t.chosen[k]]), through += t.gate[k] * dgate[k];
    for (int k = 0; k < K; ++k)
      dprobability[t.chosen[k]] += renormalise ? (T(scale) * dgate[k] - through) / chosen : T(scale) * dgate[k];
    for (int e = 0; e < t.experts; ++e) dlogits[e] += dprobability[e] * sigmoid_derivative(t.logits[e]);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("groups", self.groups), f("best_groups", self.best_groups), f("renormalise", self.renormalise);
    f("scale", self.scale), f("balance_loss", self.balance_loss), f("z_loss", self.z_loss);
  }
  friend constexpr bool operator==(const sigmoid_top_k&, const sigmoid_top_k&) = default;

 private:
  static constexpr float least = 1e-20f;  // added to sums that divide: all scores may be 0
};

}  // namespace moeskip::router
