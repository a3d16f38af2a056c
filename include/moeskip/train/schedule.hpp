// Schedules: the learning rate over time, as a share of the optimizer's lr.
//   warmup_cosine         linear warm-up, then half a cosine down to `floor`
//   warmup_stable_decay   linear warm-up, the full rate, then down to `floor` over the last `decay` of the steps; as
//                         1 − √x, which ends lower than a line             Hägele et al. 2024, arXiv:2405.18392
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <numbers>
#include <string_view>

namespace moeskip {

/// at(step, steps): the share in `step` (from 0) of `steps` planned ones; step may run past them.
template <class S> concept Schedule = std::equality_comparable<S> && requires(const S& s, std::uint64_t step) {
  { S::name } -> std::convertible_to<std::string_view>;
  { s.at(step, step) } -> std::convertible_to<double>;
};

namespace schedule {

/// 1/warmup in step 0, 1 from step warmup − 1 on.
inline double warm(std::uint64_t step, int warmup) {
  return step < std::uint64_t(warmup) ? double(step + 1) / double(warmup) : 1.0;
}

}  // namespace schedule

struct warmup_cosine {
  static constexpr std::string_view name = "warmup_cosine";
  int warmup = 20;     // steps
  double floor = 0.1;  // of the peak

  double at(std::uint64_t step, std::uint64_t steps) const {
    if (step < std::uint64_t(warmup)) return schedule::warm(step, warmup);
    const double span = double(steps) - warmup;
    const double done = span > 0 ? std::min(1.0, (double(step) - warmup) / span) : 1.0;
    return floor + (1 - floor) * 0.5 * (1 + std::cos(std::numbers::pi * done));
  }
  constexpr std::string_view problem() const {
    if (warmup < 0) return "warmup must be 0 or more";
    if (!(floor >= 0 && floor <= 1)) return "floor must be in [0, 1]";
    return {};
  }
  template <class Self, class F> static constexpr void fields(Self& s, F&& f) {
    f("warmup", s.warmup), f("floor", s.floor);
  }
  friend constexpr bool operator==(const warmup_cosine&, const warmup_cosine&) = default;
};

struct warmup_stable_decay {
  static constexpr std::string_view name = "warmup_stable_decay";
  int warmup = 20;     // steps
  double decay = 0.2;  // share of the planned steps, at their end
  double floor = 0;    // of the peak
  bool line = false;   // fall along a line, not along 1 − √x

  double at(std::uint64_t step, std::uint64_t steps) const {
    const double falling = decay * double(steps), left = double(steps) - double(step);
    if (left >= falling) return schedule::warm(step, warmup);
    const double done = std::min(1.0, 1 - left / falling), fall = line ? done : std::sqrt(done);
    return std::min(schedule::warm(step, warmup), floor + (1 - floor) * (1 - fall));
  }
  constexpr std::string_view problem() const {
    if (warmup < 0) return "warmup must be 0 or more";
    if (!(decay >= 0 && decay <= 1)) return "decay must be in [0, 1]";
    if (!(floor >= 0 && floor <= 1)) return "floor must be in [0, 1]";
    return {};
  }
  template <class Self, class F> static constexpr void fields(Self& s, F&& f) {
    f("warmup", s.warmup), f("decay", s.decay), f("floor", s.floor), f("line", s.line);
  }
  friend constexpr bool operator==(const warmup_stable_decay&, const warmup_stable_decay&) = default;
};

}  // namespace moeskip
