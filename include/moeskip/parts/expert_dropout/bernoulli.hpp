// Whole experts vanish while training: in each layer every expert is dropped with probability p before the router's
// softmax, for all tokens of a step alike, for those of a sequence, or for each token by itself. A router that must
// choose k of fewer than k survivors would choose vanished ones, so the k experts with the highest draws survive in any
// case.
#pragma once

#include <string_view>

#include "moeskip/parts/expert_dropout/groups.hpp"

namespace moeskip::expert_dropout {

struct bernoulli {
  static constexpr std::string_view name = "bernoulli";
  float p = 0.1f;                       // chance that an expert is dropped
  mask_scope scope = mask_scope::step;  // who shares a draw

  constexpr std::string_view problem() const { return problem_of(p, scope); }
  MOESKIP_HD constexpr mask_scope drawn_per() const { return scope; }
  MOESKIP_HD expert_set survivors(const mask_key& key, int experts, int at_least) const {
    return surviving_groups(key, experts, at_least, p, 1);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("p", self.p), f("scope", self.scope);
  }
  friend constexpr bool operator==(const bernoulli&, const bernoulli&) = default;
};

}  // namespace moeskip::expert_dropout
