// The K best experts by softmax score, of the best groups alone.           DeepSeek-V2, arXiv:2405.04434, section 2.1
//   gate_k = scale · p_k     p = softmax over all living experts
// A group counts as much as its best expert ("group_limited_greedy"; one group: "greedy").
#pragma once

#include <string_view>

#include "moeskip/parts/router/groups.hpp"

namespace moeskip::router {

template <int K> struct grouped_top_k {
  static constexpr std::string_view name = "grouped_top_k";
  static constexpr int experts_per_token = K;
  using made_by_warps = grouped_top_k;

  int groups = 1;       // of consecutive experts, equally large
  int best_groups = 1;  // from which experts may be chosen
  float scale = 1.f;    // of the gates: "routed_scaling_factor"
  float balance_loss = 0.01f;
  float z_loss = 0.f;

  constexpr std::string_view problem() const {
    if (const std::string_view p = groups_problem(groups, best_groups); !p.empty()) return p;
    if (!(scale > 0 && scale < 1e6f)) return "router.scale must be positive and finite";
    return auxiliary_problem(balance_loss, z_loss);
  }
  constexpr std::string_view problem(int experts) const { return groups_problem(groups, best_groups, experts, K); }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const { softmax_alive(t, t.logits); }
  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    choose_in_groups<K, 1>(t, t.logits, groups, best_groups);  // ordered as probabilities are, and never equal at 0
  }
  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const {
    weigh_by_probability<K>(t);
    together(t, [&](const auto& by) {
      for (int k = by.lane(); k < K; k += by.lanes()) t.gate[k] *= T(scale);
    });
  }

  template <class T>
  MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability, T* dlogits) const {
    T dunscaled[K];
    for (int k = 0; k < K; ++k) dunscaled[k] = dgate[k] * T(scale);
    weigh_by_probability_backward<K>(t, dunscaled, dprobability);
    softmax_alive_backward(t, dprobability, dlogits);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("groups", self.groups), f("best_groups", self.best_groups), f("scale", self.scale);
    f("balance_loss", self.balance_loss), f("z_loss", self.z_loss);
  }
  friend constexpr bool operator==(const grouped_top_k&, const grouped_top_k&) = default;
};

}  // namespace moeskip::router
