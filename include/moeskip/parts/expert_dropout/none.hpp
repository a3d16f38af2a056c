// No expert dropout: all experts stay.
#pragma once

#include <string_view>

#include "moeskip/concepts/expert_dropout.hpp"

namespace moeskip::expert_dropout {

struct none {
  static constexpr std::string_view name = "none";
  MOESKIP_HD expert_set survivors(const mask_key&, int experts, int) const { return expert_set::first(experts); }
  template <class Self, class F> static constexpr void fields(Self&, F&&) {}
  friend constexpr bool operator==(const none&, const none&) = default;
};

}  // namespace moeskip::expert_dropout
