// Schedules of dropout policies, shares in [0, 1] of the policy's own number.
//   over depth, l = 0 … L−1                            over time, t = progress in [0, 1]
//     uniform      1                                     constant     1
//     linear       l / (L−1)                             linear       t
//     exponential  2^(l/(L−1)) − 1                       exponential  2^t − 1
//     custom<N>    a table, one value a layer
// A model of one layer has 0 from linear and exponential, which begin at 0.     LayerSkip, arXiv:2404.16710, eq. 2 to 4
#pragma once

#include <array>
#include <cstddef>
#include <string_view>

#include "moeskip/concepts/schedule.hpp"
#include "moeskip/fwd.hpp"

namespace moeskip {

namespace detail {

/// 2^x − 1 for x in [0, 1], by its series: std::exp2 is no constant expression. Exact to rounding, 1 at x = 1.
MOESKIP_HD constexpr float exp2_minus_1(double x) {
  double term = 1, sum = 0;
  for (int n = 1; n <= 20; ++n) sum += term *= x * 0.69314718055994530942 / n;
  return float(sum);
}

/// Where layer l of L stands between the first, 0, and the last, 1.
MOESKIP_HD constexpr double relative_depth(int layer, int layers) {
  return layers < 2 ? 0. : double(layer) / (layers - 1);
}

/// The characters of several names in a row.
template <const std::string_view&... Parts> struct joined {
  static constexpr std::size_t size = (Parts.size() + ... + 0);
  static constexpr std::array<char, size> copy() {
    std::array<char, size> all{};
    std::size_t at = 0;
    for (const std::string_view part : {Parts...})
      for (const char c : part) all[at++] = c;
    return all;
  }
  static constexpr std::array<char, size> characters = copy();
  static constexpr std::string_view name{characters.data(), size};
};
inline constexpr std::string_view opening = "<", comma = ", ", closing = ">";

/// A schedule's own complaint about its numbers; empty where it has none.
template <class S> constexpr std::string_view schedule_problem(const S& schedule) {
  if constexpr (requires { schedule.problem(); }) return schedule.problem();
  else return {};
}
template <class S> constexpr bool schedule_fits(const S& schedule, int layers) {
  if constexpr (requires { schedule.fits(layers); }) return schedule.fits(layers);
  else return layers > 0;
}
template <class S, class F> constexpr void schedule_fields(S& schedule, F&& f) {
  if constexpr (requires { schedule.fields(schedule, f); }) schedule.fields(schedule, f);
}

}  // namespace detail

namespace depth {

struct uniform {
  static constexpr std::string_view name = "uniform";
  MOESKIP_HD constexpr float at(int, int) const { return 1.f; }
  friend constexpr bool operator==(const uniform&, const uniform&) = default;
};

struct linear {
  static constexpr std::string_view name = "linear";
  MOESKIP_HD constexpr float at(int layer, int layers) const { return float(detail::relative_depth(layer, layers)); }
  friend constexpr bool operator==(const linear&, const linear&) = default;
};

struct exponential {
  static constexpr std::string_view name = "exponential";
  MOESKIP_HD constexpr float at(int layer, int layers) const {
    return detail::exp2_minus_1(detail::relative_depth(layer, layers));
  }
  friend constexpr bool operator==(const exponential&, const exponential&) = default;
};

/// One value for each of the N layers of the model.
template <int N> struct custom {
  static_assert(N >= 1 && N <= 128, "moeskip: depth::custom<N> has one value a layer, from 1 to 128");
  static constexpr std::string_view name = "custom";
  std::array<float, std::size_t(N)> values{};  // (L)

  constexpr std::string_view problem() const {
    for (const float v : values)
      if (!(v >= 0 && v <= 1)) return "values must be in [0, 1]";
    return {};
  }
  constexpr bool fits(int layers) const { return layers == N; }
  MOESKIP_HD constexpr float at(int layer, int) const {
    return layer >= 0 && layer < N ? values[std::size_t(layer)] : 0.f;
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("values", self.values); }
  friend constexpr bool operator==(const custom&, const custom&) = default;
};

}  // namespace depth

namespace over_time {

struct constant {
  static constexpr std::string_view name = "constant";
  MOESKIP_HD constexpr float at(double) const { return 1.f; }
  friend constexpr bool operator==(const constant&, const constant&) = default;
};

struct linear {
  static constexpr std::string_view name = "linear";
  MOESKIP_HD constexpr float at(double progress) const { return float(progress); }
  friend constexpr bool operator==(const linear&, const linear&) = default;
};

/// LayerSkip's, for training from scratch.
struct exponential {
  static constexpr std::string_view name = "exponential";
  MOESKIP_HD constexpr float at(double progress) const { return detail::exp2_minus_1(progress); }
  friend constexpr bool operator==(const exponential&, const exponential&) = default;
};

}  // namespace over_time

}  // namespace moeskip
