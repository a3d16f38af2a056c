// No layer dropout.
#pragma once

#include <string_view>

#include "moeskip/concepts/layer_dropout.hpp"

namespace moeskip::layer_dropout {

struct none {
  static constexpr std::string_view name = "none";
  static constexpr float probability(int, int, double = 1) { return 0.f; }
  template <class Self, class F> static constexpr void fields(Self&, F&&) {}
  friend constexpr bool operator==(const none&, const none&) = default;
};

}  // namespace moeskip::layer_dropout
