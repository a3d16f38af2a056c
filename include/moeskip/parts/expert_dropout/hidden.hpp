// Dropout inside the experts: each unit of an expert's activation is 0 for a token with probability p, and else divided
// by 1 − p. For fine-tuning on little data, where experts overfit.    Switch Transformer, arXiv:2101.03961, section 2.4
#pragma once

#include <string_view>

#include "moeskip/parts/expert_dropout/groups.hpp"

namespace moeskip::expert_dropout {

struct hidden {
  static constexpr std::string_view name = "hidden";
  float p = 0.4f;  // chance that a unit is 0; rounded to a multiple of 2^-16 (ops/activation_mask.hpp)

  constexpr std::string_view problem() const { return problem_of(p); }
  MOESKIP_HD expert_set survivors(const mask_key&, int experts, int) const { return expert_set::first(experts); }
  MOESKIP_HD float activation_dropout(const mask_key&) const { return p; }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("p", self.p); }
  friend constexpr bool operator==(const hidden&, const hidden&) = default;
};

}  // namespace moeskip::expert_dropout
