// Smooth routing: a loss on how much the router's probabilities change from a token to the next, so that neighbours
// tend to share experts. The choice itself is R's.
//   change = mean over tokens with a predecessor in the batch of ½ Σ_e (p_n,e − p_{n−1},e)²          (ops/route.hpp)
#pragma once

#include <string_view>

#include "moeskip/parts/router/wrapper.hpp"

namespace moeskip::router {

template <class R> struct smooth {
  static constexpr std::string_view name = "smooth";
  using base_type = R;
  static constexpr int experts_per_token = R::experts_per_token;

  static_assert(moeskip::logits_per_expert<R> != 0, "moeskip: there is nothing to smooth in a router without scores");

  R base{};
  float change_loss = 0.1f;  // weight in the total loss

  constexpr std::string_view problem() const {
    return change_loss >= 0 && change_loss < 1e6f ? "" : "router.change_loss must be 0 or more, and finite";
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    base_fields<R>(self.base, f), f("change_loss", self.change_loss);
  }
  friend constexpr bool operator==(const smooth&, const smooth&) = default;
};

}  // namespace moeskip::router
