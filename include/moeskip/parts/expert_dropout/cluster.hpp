// Experts vanish by the cluster: `size` consecutive ones live or die together, so that what one of them knows cannot
// hide with its neighbours (those of one device, say, or the copies of one upcycled block). Whole clusters come back
// until a token has the k experts that it visits.
#pragma once

#include <string_view>

#include "moeskip/parts/expert_dropout/groups.hpp"

namespace moeskip::expert_dropout {

struct cluster {
  static constexpr std::string_view name = "cluster";
  float p = 0.1f;                       // chance that a cluster is dropped
  int size = 2;                         // experts in a cluster; the last may have fewer
  mask_scope scope = mask_scope::step;  // who shares a draw

  constexpr std::string_view problem() const {
    if (size < 1 || size > expert_set::capacity) return "expert_dropout.size must be from 1 to 512";
    return problem_of(p, scope);
  }
  MOESKIP_HD constexpr mask_scope drawn_per() const { return scope; }
  MOESKIP_HD expert_set survivors(const mask_key& key, int experts, int at_least) const {
    return surviving_groups(key, experts, at_least, p, size);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("p", self.p), f("size", self.size), f("scope", self.scope);
  }
  friend constexpr bool operator==(const cluster&, const cluster&) = default;
};

}  // namespace moeskip::expert_dropout
