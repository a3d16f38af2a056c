// Each chosen expert's contribution to a token is left out with probability p, and else divided by 1 − p, so that its
// expectation is what inference computes. The router's gates, and its losses, are as without.
// NLLB's expert output masking: arXiv:2207.04672, section 6.2.2
#pragma once

#include <string_view>

#include "moeskip/parts/expert_dropout/groups.hpp"

namespace moeskip::expert_dropout {

struct output {
  static constexpr std::string_view name = "output";
  float p = 0.2f;  // chance that an assignment's output is left out

  constexpr std::string_view problem() const { return problem_of(p); }
  MOESKIP_HD expert_set survivors(const mask_key&, int experts, int) const { return expert_set::first(experts); }
  MOESKIP_HD float output_dropout(const mask_key&) const { return p; }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("p", self.p); }
  friend constexpr bool operator==(const output&, const output&) = default;
};

}  // namespace moeskip::expert_dropout
