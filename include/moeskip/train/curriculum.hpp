// When the exits learn.                                                   LayerSkip, arXiv:2404.16710, section 4.1.2
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/concepts/curriculum.hpp"

namespace moeskip::curriculum {

/// Every exit in every step.
struct all {
  static constexpr std::string_view name = "all";
  layer_set enabled(const layer_set& exits, const training_moment&) const { return exits; }
  template <class Self, class F> static constexpr void fields(Self&, F&&) {}
  friend constexpr bool operator==(const all&, const all&) = default;
};

/// Each exit once in `every` steps: exits are numbered from below, and those whose number is step modulo `every` are
/// on. Cheaper, and the last layer loses less.
struct rotational {
  static constexpr std::string_view name = "rotational";
  int every = 2;

  layer_set enabled(const layer_set& exits, const training_moment& now) const {
    layer_set on;
    const std::uint64_t period = std::uint64_t(std::max(every, 1));
    std::uint64_t number = 0;
    for (int e = 0; e < layer_set::capacity; ++e)
      if (exits.contains(e) && number++ % period == now.step % period) on.insert(e);
    return on;
  }
  constexpr std::string_view problem() const { return every < 1 ? "every must be at least 1" : std::string_view{}; }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("every", self.every); }
  friend constexpr bool operator==(const rotational&, const rotational&) = default;
};

/// From the top down, one more layer every steps/(2L): exit e is on from step T/2 · (L−e)/L, so that all are on at T/2.
struct gradual {
  static constexpr std::string_view name = "gradual";

  layer_set enabled(const layer_set& exits, const training_moment& now) const {
    layer_set on;
    const double reached = 2.0 * double(now.layers) * double(now.step) / double(now.steps);  // layers below the top
    for (int e = 0; e < layer_set::capacity; ++e)
      if (exits.contains(e) && now.layers - e <= reached) on.insert(e);
    return on;
  }
  template <class Self, class F> static constexpr void fields(Self&, F&&) {}
  friend constexpr bool operator==(const gradual&, const gradual&) = default;
};

}  // namespace moeskip::curriculum
