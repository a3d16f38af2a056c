// Balance without a loss: every expert has a bias that only the choice sees, and after each training step the bias of
// an expert moves by a rate against its load.                 Wang et al. 2024, arXiv:2408.15664; DeepSeek-V3, 2.1.2
//   b_e ← b_e − rate · sign(load_e − mean load)
// A bias that never stops stepping keeps the loads swinging; towards the end of a training the rate may fall to zero.
// The bias is a weight of the model ("mlp.gate.e_score_correction_bias"), saved and loaded with it.
#pragma once

#include <string_view>

#include "moeskip/parts/router/wrapper.hpp"

namespace moeskip::router {

template <class R> struct biased {
  static constexpr std::string_view name = "biased";
  using base_type = R;
  static constexpr int experts_per_token = R::experts_per_token;
  static constexpr bool has_selection_bias = true;

  R base{};
  float bias_rate = 0.001f;  // a step, on the scale of what R compares
  float settles_from = 1;    // share of the training behind which the rate falls in a line, to zero at its end

  constexpr std::string_view problem() const {
    if (!(bias_rate >= 0 && bias_rate < 1e6f)) return "router.bias_rate must be 0 or more, and finite";
    return settles_from >= 0 && settles_from <= 1 ? "" : "router.settles_from must be in [0, 1]";
  }
  constexpr double rate_at(double progress) const {
    const double from = settles_from;
    return bias_rate * (progress <= from ? 1 : (1 - progress) / (1 - from));
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    base_fields<R>(self.base, f), f("bias_rate", self.bias_rate);
    f("settles_from", self.settles_from);
  }
  friend constexpr bool operator==(const biased&, const biased&) = default;
};

}  // namespace moeskip::router
