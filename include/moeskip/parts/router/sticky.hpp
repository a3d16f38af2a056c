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
  static constexpr bool follows_previous = true;
  using made_by_warps = sticky;

  R base{};
  float bonus = 0.5f;
  int from_layer = 0;  // layers below choose as R does
  // Share of the training until which all layers choose as R does. Passes without training, validation in between among
  // them, are past it.
  float from_progress = 0;

  constexpr std::string_view problem() const {
    if (!(bonus >= 0 && bonus < 1e6f)) return "router.bonus must be 0 or more, and finite";
    return onset_problem(from_progress);
  }

  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    if (!t.previous || !has_begun(*this, t)) return router::choose<T>(base, t);
    T bias[expert_set::capacity];
    together(t, [&](const auto& by) {
      for (int e = by.lane(); e < t.experts; e += by.lanes()) bias[e] = t.bias ? t.bias[e] : T{};
      for (int k = 0; k < R::experts_per_token; ++k)
        if (t.previous[k] >= 0 && by.has(t.previous[k])) bias[t.previous[k]] += T(bonus);
    });
    routed_token<T> biased = t;
    biased.bias = bias;
    router::choose<T>(base, biased);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    base_fields<R>(self.base, f), f("bonus", self.bonus), f("from_layer", self.from_layer);
    f("from_progress", self.from_progress);
  }
  friend constexpr bool operator==(const sticky&, const sticky&) = default;
};

}  // namespace moeskip::router
