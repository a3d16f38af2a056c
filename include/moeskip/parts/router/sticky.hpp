// Sticky routing: the experts of the sequence's token before get a bonus in the choice, so that an expert is changed
// only for a better one by that much. The bonus is on the scale of what R compares: logits for top_k, scores in (0, 1)
// for sigmoid_top_k. Gates do not see it.
#pragma once

#include <string_view>

#include "moeskip/parts/router/wrapper.hpp"

namespace moeskip::router {

template <class R> struct sticky {
  static constexpr std::string_view name = "sticky";
  using base_type = R;
  static constexpr int experts_per_token = R::experts_per_token;
  static constexpr int logits_per_expert = moeskip::logits_per_expert<R>;
  static constexpr bool follows_previous = true;
  static constexpr int segment_length = moeskip::segment_length<R>;
  static constexpr bool has_selection_bias = moeskip::has_selection_bias<R>;
  static_assert(!ChoosesRows<R>, "moeskip: where experts choose tokens, a token's choice cannot be changed");

  R base{};
  float bonus = 0.5f;
  int from_layer = 0;  // layers below choose as R does

  constexpr std::string_view problem() const {
    return bonus >= 0 && bonus < 1e6f ? "" : "router.bonus must be 0 or more, and finite";
  }
  static std::string parameters() { return {}; }

  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    if (!t.previous || t.layer < from_layer) return base.template choose<T>(t);
    T bias[expert_set::capacity];
    for (int e = 0; e < t.experts; ++e) bias[e] = t.bias ? t.bias[e] : T{};
    for (int k = 0; k < R::experts_per_token; ++k)
      if (t.previous[k] >= 0) bias[t.previous[k]] += T(bonus);
    routed_token<T> biased = t;
    biased.bias = bias;
    base.template choose<T>(biased);
  }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const { base.template score<T>(t); }
  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const { base.template weigh<T>(t); }
  template <class T> MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dp, T* dlogits) const {
    base.template backward<T>(t, dgate, dp, dlogits);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    base_fields<R>(self.base, f), f("bonus", self.bonus), f("from_layer", self.from_layer);
  }
  friend constexpr bool operator==(const sticky&, const sticky&) = default;
};

}  // namespace moeskip::router
