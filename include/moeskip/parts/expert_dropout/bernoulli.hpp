// Whole experts vanish while training: in each layer and step every expert is dropped with probability p, for all
// tokens alike, before the router's softmax. A router that must choose k of fewer than k survivors would choose
// vanished ones, so the k experts with the highest draws survive in any case.
#pragma once

#include <string_view>

#include "moeskip/concepts/expert_dropout.hpp"

namespace moeskip::expert_dropout {

struct bernoulli {
  static constexpr std::string_view name = "bernoulli";
  float p = 0.1f;  // chance that an expert is dropped

  constexpr std::string_view problem() const { return p >= 0 && p < 1 ? "" : "expert_dropout.p must be in [0, 1)"; }

  MOESKIP_HD expert_set survivors(const mask_key& key, int experts, int at_least) const {
    const draws draw{key.from, stream::expert_dropout};
    const auto height = [&](int e) { return draw.uniform(key.step, std::uint64_t(key.layer), 0, std::uint64_t(e)); };
    expert_set alive;
    for (int e = 0; e < experts; ++e)
      if (height(e) >= p) alive.insert(e);
    for (int size = alive.size(); size < at_least; ++size) {
      int highest = -1;
      for (int e = 0; e < experts; ++e)
        if (!alive.contains(e) && (highest < 0 || height(e) > height(highest))) highest = e;
      alive.insert(highest);
    }
    return alive;
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("p", self.p); }
  friend constexpr bool operator==(const bernoulli&, const bernoulli&) = default;
};

}  // namespace moeskip::expert_dropout
