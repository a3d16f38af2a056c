// Who shares a loop: one thread, or the lanes of a warp, which run the same code on numbers of their own.
//   for (int i = by.lane(); i < n; i += by.lanes()) sum += x[i];
//   sum = by.sum(sum);
// With one_thread that is the plain loop.
#pragma once

#include <bit>
#include <limits>

#include "moeskip/base/config.hpp"

namespace moeskip {

struct one_thread {
  MOESKIP_HD static constexpr int lane() { return 0; }
  MOESKIP_HD static constexpr int lanes() { return 1; }
  MOESKIP_HD static constexpr bool has(int) { return true; }
  MOESKIP_HD static constexpr void sync() {}
  template <class T> MOESKIP_HD static constexpr T sum(const T& v) { return v; }
  template <class T> MOESKIP_HD static constexpr T max(const T& v) { return v; }
  template <class T> MOESKIP_HD static constexpr void two_largest(T&, T&) {}
};

/// A warp that somebody plays on the host: sum and the largest over its lanes.
class played_warp {
 public:
  virtual float sum(float v) const = 0;
  virtual int most(int v) const = 0;

 protected:
  played_warp() = default;
  played_warp(const played_warp&) = default;
  ~played_warp() = default;
};

/// The lanes of a warp as one of them sees them, or, made from nothing, none: then it is false. All lanes call its
/// members, alike.
class warp_lanes {
 public:
  constexpr warp_lanes() = default;
  MOESKIP_HD constexpr explicit warp_lanes(int lane, const played_warp* played = nullptr)
      : lane_(lane), played_(played) {}
  MOESKIP_HD constexpr explicit operator bool() const { return lane_ >= 0; }

  MOESKIP_HD int lane() const { return lane_; }
  MOESKIP_HD static constexpr int lanes() { return 32; }
  /// Whether i is this lane's.
  MOESKIP_HD bool has(int i) const { return i >= 0 && i % lanes() == lane_; }
  /// Lanes see what the others wrote before.
  MOESKIP_HD void sync() const { wait_for_lanes(played_); }

  MOESKIP_HD float sum(float v) const { return sum_of_lanes(played_, v); }
  /// v: not NaN.
  MOESKIP_HD float max(float v) const { return number(most_of_lanes(played_, rank(v))); }
  /// first ≥ second of each lane become those of all lanes.
  MOESKIP_HD void two_largest(float& first, float& second) const {
    const float largest = max(first);
    const int holder = most_of_lanes(played_, first == largest ? lane_ : -1);
    second = max(lane_ == holder ? second : first), first = largest;
  }
  /// Of the lanes' numbers that with the highest score, among equals the lowest; -1 is no number.
  MOESKIP_HD int best(int mine, float score) const {
    constexpr int none = std::numeric_limits<int>::min();
    const int mark = mine < 0 || score != score ? none : rank(score);
    const int highest = most_of_lanes(played_, mark);
    const int lowest = most_of_lanes(played_, mine >= 0 && mark == highest ? -mine : none);
    return lowest == none ? -1 : -lowest;
  }

 private:
  // Floats as integers of the same order.
  MOESKIP_HD static int rank(float v) {
    const int bits = std::bit_cast<int>(v);
    return bits < 0 ? bits ^ std::numeric_limits<int>::max() : bits;
  }
  MOESKIP_HD static float number(int rank) {
    return std::bit_cast<float>(rank < 0 ? rank ^ std::numeric_limits<int>::max() : rank);
  }

  int lane_ = -1;
  const played_warp* played_ = nullptr;
};

}  // namespace moeskip
