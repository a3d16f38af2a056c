// How much each exit counts in the loss.                                          LayerSkip, arXiv:2404.16710, eq. 6
//   e(l) = e_scale · Σ_{i<=l} i  below the top,   e(L−1) = (L−1) + e_scale · Σ_{i<=L−2} i,   divided by the sum over the
//   enabled ones.   l = exit_layer − 1: the exit after one layer has weight 0.
#pragma once

#include <array>

#include "moeskip/base/bit_set.hpp"

namespace moeskip {

/// Weight of each exit layer, 0 where there is none; sums to 1. Index 1 … layers.
using exit_weights = std::array<double, std::size_t(layer_set::capacity) + 1>;

inline exit_weights layerskip_weights(const layer_set& enabled, int layers, double e_scale) {
  exit_weights w{};
  double sum = 0;
  for (int e = 1; e <= layers; ++e) {
    const double l = e - 1;
    if (e < layers && enabled.contains(e)) w[std::size_t(e)] = e_scale * l * (l + 1) / 2;
    // A model of one layer has only its top, whose formula would be 0.
    if (e == layers) w[std::size_t(e)] = layers == 1 ? 1 : l + e_scale * (l - 1) * l / 2;
    sum += w[std::size_t(e)];
  }
  for (double& weight : w) weight /= sum;
  return w;
}

}  // namespace moeskip
