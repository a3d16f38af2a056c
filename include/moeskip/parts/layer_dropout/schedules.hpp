// Layers are skipped with a probability that follows the depth and the progress of training.
//   p(l, t) = p_max · depth(l) · time(t)                            LayerSkip, arXiv:2404.16710, eq. 1 to 4
// The names `uniform`, `linear`, `exponential` and `custom<N>` are schedules over depth, constant in time; others are
// composed: by_depth<depth::exponential, over_time::exponential> is LayerSkip's for training from scratch.
#pragma once

#include <string_view>
#include <type_traits>

#include "moeskip/concepts/layer_dropout.hpp"
#include "moeskip/parts/schedule.hpp"

namespace moeskip::layer_dropout {

namespace detail {

inline constexpr std::string_view by_depth_name = "by_depth";

/// "exponential" where time does not matter, else "by_depth<exponential, linear>".
template <class Depth, class Time> constexpr std::string_view schedule_name() {
  namespace all = moeskip::detail;
  if constexpr (std::is_same_v<Time, over_time::constant>) return Depth::name;
  else return all::joined<by_depth_name, all::opening, Depth::name, all::comma, Time::name, all::closing>::name;
}

}  // namespace detail

template <class Depth, class Time> struct by_depth {
  static_assert(DepthSchedule<Depth>,
                "moeskip: by_depth<Depth, Time>: Depth needs `name`, `float at(int layer, int layers) const` and `==`. "
                "See moeskip/concepts/schedule.hpp");
  static_assert(TimeSchedule<Time>,
                "moeskip: by_depth<Depth, Time>: Time needs `name`, `float at(double progress) const` and `==`. See "
                "moeskip/concepts/schedule.hpp");
  static constexpr std::string_view name = detail::schedule_name<Depth, Time>();
  float p_max = 0.1f;  // where depth and time are at their full value
  Depth depth{};
  Time time{};

  constexpr std::string_view problem() const {
    if (!(p_max >= 0 && p_max < 1)) return "layer_dropout.p_max must be in [0, 1)";
    if (!moeskip::detail::schedule_problem(depth).empty()) return "layer_dropout.values must be in [0, 1]";
    return {};
  }
  constexpr std::string_view problem(int layers) const {
    return moeskip::detail::schedule_fits(depth, layers) ? ""
                                                         : "layer_dropout.values must be one for each of sizes.layers";
  }
  constexpr float probability(int layer, int layers, double progress = 1) const {
    return p_max * depth.at(layer, layers) * time.at(progress);
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("p_max", self.p_max);
    moeskip::detail::schedule_fields(self.depth, f), moeskip::detail::schedule_fields(self.time, f);
  }
  friend constexpr bool operator==(const by_depth&, const by_depth&) = default;
};

using uniform = by_depth<depth::uniform>;
using linear = by_depth<depth::linear>;
using exponential = by_depth<depth::exponential>;
template <int N> using custom = by_depth<depth::custom<N>>;

}  // namespace moeskip::layer_dropout
