// Sigmoid scores, each expert judged by itself, and experts in groups.          DeepSeek-V3, arXiv:2412.19437, 2.1.2
//   s_e = sigmoid(logit_e)     gate_k = scale · s_k / Σ_chosen s
// The choice compares s_e plus the selection bias (router::biased adds one); the gates do not see it. With groups, only
// the experts of the best `best_groups` groups can be chosen; a group counts as much as its two best experts together.
// The balance loss sees p_e = s_e / Σ_alive s.
#pragma once

#include <string_view>

#include "moeskip/parts/router/scoring.hpp"

namespace moeskip::router {

template <int K> struct sigmoid_top_k {
  static constexpr std::string_view name = "sigmoid_top_k";
  static constexpr int experts_per_token = K;

  int groups = 1;              // of consecutive experts, equally large
  int best_groups = 1;         // from which experts may be chosen
  bool renormalise = true;     // divide the gates by the sum over the chosen
  float scale = 1.f;           // of the gates: "routed_scaling_factor"
  float balance_loss = 0.01f;  // 0 where a selection bias keeps the balance
  float z_loss = 0.f;

  constexpr std::string_view problem() const {
    if (groups < 1 || groups > expert_set::capacity) return "router.groups must be from 1 to 512";
    if (best_groups < 1 || best_groups > groups) return "router.best_groups must be from 1 to router.groups";
    if (!(scale > 0 && scale < 1e6f)) return "router.scale must be positive and finite";
    return auxiliary_problem(balance_loss, z_loss);
  }
  constexpr std::string_view problem(int experts) const {
    if (experts % groups) return "sizes.experts must be a multiple of router.groups";
    if (experts / groups * best_groups < K) return "router.best_groups must hold at least experts_per_token experts";
    return {};
  }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const {
    T sum(least);
    for (int e = 0; e < t.experts; ++e) {
      t.probability[e] = t.alive->contains(e) ? sigmoid(t.logits[e]) : T{};
      sum += t.probability[e];
    }
    for (int e = 0; e < t.experts; ++e) t.probability[e] /= sum;
  }

  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    // p and s differ by a factor of the token; the bias is on the scale of s
    T scores[expert_set::capacity];
    for (int e = 0; e < t.experts; ++e) scores[e] = sigmoid(t.logits[e]);
    if (best_groups == groups) return choose_best<K>(t, scores);
    const expert_set open = in_best_groups(t, scores);
    routed_token<T> among = t;
    among.alive = &open;
    choose_best<K>(among, scores);
    // Expert dropout may have left the best groups fewer than K: then the groups do not bind.
    if (t.chosen[K - 1] < 0) choose_best<K>(t, scores);
  }

  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const {
    T sum(least);
    for (int k = 0; k < K; ++k) sum += t.gate[k] = sigmoid(t.logits[t.chosen[k]]);
    for (int k = 0; k < K; ++k) t.gate[k] *= T(scale) / (renormalise ? sum : T(1));
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

  /// The living experts of the best groups.
  template <class T> MOESKIP_HD expert_set in_best_groups(const routed_token<T>& t, const T* scores) const {
    const int size = t.experts / groups;
    const auto biased = [&](int e) { return real_part(scores[e]) + (t.bias ? real_part(t.bias[e]) : real_t<T>(0)); };
    const auto worth = [&](int g) {  // of the two best; a group with fewer living ones counts less
      real_t<T> best(-1e30f), second(-1e30f);
      for (int e = g * size; e < (g + 1) * size; ++e) {
        if (!t.alive->contains(e)) continue;
        if (biased(e) > best) second = best, best = biased(e);
        else if (biased(e) > second) second = biased(e);
      }
      return size == 1 ? best : best + second;
    };
    expert_set open, taken;  // taken: groups
    for (int i = 0; i < best_groups; ++i) {
      int best = -1;
      for (int g = 0; g < groups; ++g)
        if (!taken.contains(g) && (best < 0 || worth(g) > worth(best))) best = g;
      taken.insert(best);
      for (int e = best * size; e < (best + 1) * size; ++e)
        if (t.alive->contains(e)) open.insert(e);
    }
    return open;
  }
};

}  // namespace moeskip::router
