// LayerDropout: how likely a layer is skipped by a training sequence. Who is skipped is drawn by the model, per layer
// and sequence; dropped sequences leave the layer's computation.
#pragma once

#include <concepts>

#include "moeskip/concepts/expert_dropout.hpp"

namespace moeskip {

namespace detail {
template <class P> concept tells_probability = requires(const P& p) {
  { p.probability(int{}, int{}, double{}) } -> std::convertible_to<float>;
};
}  // namespace detail

/// probability(layer, layers, progress) is in [0, 1), for layer = 0 … layers-1 and progress in [0, 1], the share of
/// the planned steps that are done.
template <class P> concept LayerDropout =
    detail::names_itself<P> && detail::comparable<P> && detail::tells_probability<P>;

}  // namespace moeskip
