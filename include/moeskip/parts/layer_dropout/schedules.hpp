// Deeper layers are skipped more often. p(l) rises from 0 at the first layer to p_max at the last of L.
//   linear        p_max · l / (L−1)
//   exponential   p_max · (2^(l/(L−1)) − 1)                       LayerSkip, arXiv:2404.16710, eq. 2 to 4
#pragma once

#include <cmath>
#include <string_view>

#include "moeskip/concepts/layer_dropout.hpp"

namespace moeskip::layer_dropout {

struct linear {
  static constexpr std::string_view name = "linear";
  float p_max = 0.1f;
  constexpr std::string_view problem() const {
    return p_max >= 0 && p_max < 1 ? "" : "layer_dropout.p_max must be in [0, 1)";
  }
  float probability(int layer, int layers) const { return layers < 2 ? 0.f : p_max * float(layer) / float(layers - 1); }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("p_max", self.p_max); }
  friend constexpr bool operator==(const linear&, const linear&) = default;
};

struct exponential {
  static constexpr std::string_view name = "exponential";
  float p_max = 0.1f;
  constexpr std::string_view problem() const {
    return p_max >= 0 && p_max < 1 ? "" : "layer_dropout.p_max must be in [0, 1)";
  }
  float probability(int layer, int layers) const {
    return layers < 2 ? 0.f : p_max * (std::exp2(float(layer) / float(layers - 1)) - 1.f);
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("p_max", self.p_max); }
  friend constexpr bool operator==(const exponential&, const exponential&) = default;
};

}  // namespace moeskip::layer_dropout
