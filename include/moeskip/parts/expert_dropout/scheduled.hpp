// Any expert dropout that has a p, with p multiplied by schedules over depth and training time:
//   scheduled<bernoulli, depth::exponential, over_time::linear>{.policy = {.p = 0.2f}}
#pragma once

#include <string_view>

#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/parts/schedule.hpp"

namespace moeskip::expert_dropout {

inline constexpr std::string_view scheduled_name = "scheduled";

template <class P, class Depth, class Time> struct scheduled {
  static_assert(
      ExpertDropout<P> && requires(P p) { p.p = 0.5f; },
      "moeskip: scheduled<P, Depth, Time>: P must be an expert dropout with a member `float p`");
  static_assert(DepthSchedule<Depth>,
                "moeskip: scheduled<P, Depth, Time>: Depth needs `name`, `float at(int layer, int layers) const` and "
                "`==`. See moeskip/concepts/schedule.hpp");
  static_assert(TimeSchedule<Time>,
                "moeskip: scheduled<P, Depth, Time>: Time needs `name`, `float at(double progress) const` and `==`. "
                "See moeskip/concepts/schedule.hpp");
  static constexpr std::string_view name =
      detail::joined<scheduled_name, detail::opening, P::name, detail::comma, Depth::name, detail::comma, Time::name,
                     detail::closing>::name;
  P policy{};  // with p where depth and time are at their full value
  Depth depth{};
  Time time{};

  /// The policy with the p of a layer and time.
  MOESKIP_HD constexpr P at(const mask_key& key) const {
    P now = policy;
    now.p *= depth.at(key.layer, key.layers) * time.at(key.progress);
    return now;
  }
  MOESKIP_HD expert_set survivors(const mask_key& key, int experts, int at_least) const {
    return at(key).survivors(key, experts, at_least);
  }
  MOESKIP_HD constexpr mask_scope drawn_per() const requires detail::has_scope<P> { return policy.drawn_per(); }
  MOESKIP_HD float output_dropout(const mask_key& key) const requires detail::masks_outputs<P> {
    return at(key).output_dropout(key);
  }
  MOESKIP_HD float activation_dropout(const mask_key& key) const requires detail::masks_activations<P> {
    return at(key).activation_dropout(key);
  }

  constexpr std::string_view problem() const {
    if constexpr (requires { policy.problem(); })
      if (!policy.problem().empty()) return policy.problem();
    return detail::schedule_problem(depth).empty() ? "" : "expert_dropout.values must be in [0, 1]";
  }
  constexpr std::string_view problem(int layers) const {
    return detail::schedule_fits(depth, layers) ? "" : "expert_dropout.values must be one for each of sizes.layers";
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    if constexpr (requires { P::fields(self.policy, f); }) P::fields(self.policy, f);
    detail::schedule_fields(self.depth, f), detail::schedule_fields(self.time, f);
  }
  friend constexpr bool operator==(const scheduled&, const scheduled&) = default;
};

}  // namespace moeskip::expert_dropout
