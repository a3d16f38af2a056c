// How much each exit counts in the loss, l = exit_layer − 1:
//   layerskip   e_scale · Σ_{i<=l} i  below the top,   (L−1) + e_scale · Σ_{i<=L−2} i  at the top; the exit after one
//               layer has weight 0                                    LayerSkip, arXiv:2404.16710, eq. 6
//   uniform 1   proportional l+1   square_root √(l+1)   inverse 1/(l+1)   times e_scale below the top
// Divided by the sum over the enabled exits.
#pragma once

#include <array>
#include <cmath>
#include <iterator>
#include <string_view>

#include "moeskip/base/bit_set.hpp"

namespace moeskip {

/// Weight of each exit layer, 0 where there is none; sums to 1. Index 1 … layers.
using exit_weights = std::array<double, std::size_t(layer_set::capacity) + 1>;

enum class exit_weight_rule { layerskip, uniform, proportional, square_root, inverse };

/// The rule's name; empty for a number that is none.
constexpr std::string_view name_of(exit_weight_rule rule) {
  constexpr std::string_view names[] = {"layerskip", "uniform", "proportional", "square_root", "inverse"};
  const std::size_t i = std::size_t(rule);
  return i < std::size(names) ? names[i] : std::string_view{};
}

namespace detail {

/// Before normalisation; l is the index of the exit's last layer.
inline double exit_weight(exit_weight_rule rule, double l, bool top, double e_scale) {
  const double below = top ? 1 : e_scale;
  switch (rule) {
    case exit_weight_rule::layerskip:
      return top ? l + e_scale * (l - 1) * l / 2 : e_scale * l * (l + 1) / 2;
    case exit_weight_rule::uniform:
      return below;
    case exit_weight_rule::proportional:
      return below * (l + 1);
    case exit_weight_rule::square_root:
      return below * std::sqrt(l + 1);
    case exit_weight_rule::inverse:
      return below / (l + 1);
  }
  return 0;
}

}  // namespace detail

/// The full depth is always enabled.
inline exit_weights loss_weights(exit_weight_rule rule, const layer_set& enabled, int layers, double e_scale) {
  exit_weights w{};
  double sum = 0;
  for (int e = 1; e <= layers; ++e) {
    double& weight = w[std::size_t(e)];
    if (e < layers && enabled.contains(e)) weight = detail::exit_weight(rule, e - 1, false, e_scale);
    // A model of one layer has only its top, whose formula would be 0.
    if (e == layers) weight = layers == 1 ? 1 : detail::exit_weight(rule, e - 1, true, e_scale);
    sum += weight;
  }
  for (double& weight : w) weight /= sum;
  return w;
}

inline exit_weights layerskip_weights(const layer_set& enabled, int layers, double e_scale) {
  return loss_weights(exit_weight_rule::layerskip, enabled, layers, e_scale);
}

}  // namespace moeskip
