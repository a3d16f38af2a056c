// Switch routing: one expert per token, weighted by its probability.          Fedus et al. 2021, arXiv:2101.03961
// While training an expert takes at most max(4, ceil(capacity_factor · N / E)) of N tokens; the rest pass by on the
// residual stream. At inference nothing is dropped: a token's result must not depend on the tokens beside it.
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>

#include "moeskip/parts/router/scoring.hpp"

namespace moeskip::router {

struct switch_top1 {
  static constexpr std::string_view name = "switch_top1";
  static constexpr int experts_per_token = 1;
  using made_by_warps = switch_top1;

  float capacity_factor = 1.25f;  // 0: no limit
  float balance_loss = 0.01f;
  float z_loss = 0.001f;

  /// Tokens that one expert takes out of a training call of `tokens`; at least 4, as OpenMoE has it. 0: no limit.
  index_t capacity(index_t tokens, int experts) const {
    if (capacity_factor <= 0) return 0;
    return std::max<index_t>(4, index_t(std::ceil(double(capacity_factor) * double(tokens) / experts)));
  }

  constexpr std::string_view problem() const {
    if (!(capacity_factor >= 0 && capacity_factor < 1e6f))
      return "router.capacity_factor must be 0 (no limit) or more, and finite";
    return auxiliary_problem(balance_loss, z_loss);
  }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const { softmax_alive(t, t.logits); }
  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const { choose_best<1>(t, t.logits); }
  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const { weigh_by_probability<1>(t); }

  template <class T>
  MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability, T* dlogits) const {
    weigh_by_probability_backward<1>(t, dgate, dprobability);
    softmax_alive_backward(t, dprobability, dlogits);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("capacity_factor", self.capacity_factor), f("balance_loss", self.balance_loss), f("z_loss", self.z_loss);
  }
  friend constexpr bool operator==(const switch_top1&, const switch_top1&) = default;
};

}  // namespace moeskip::router
