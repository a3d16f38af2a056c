// LayerSkip: whether a token may pass a layer by, decided by the token itself: middle layers as well as last ones,
// unlike an exit. `has_gates` says whether a policy has any at all; the rest is asked only then (parts/layer_gate.hpp).
#pragma once

#include "moeskip/concepts/expert_dropout.hpp"

namespace moeskip {

namespace detail {
template <class P> concept tells_gates = requires { bool{P::has_gates}; }
&&(!P::has_gates || requires(const P& p) { bool{p.gates(int{}, int{})}; });
template <class P> concept tells_gate_numbers = !P::has_gates || requires(const P& p) {
  float{p.open}, float{p.temperature}, float{p.keep}, float{p.pull};
};
}  // namespace detail

/// gates(layer, layers): whether layer = 0 … layers-1 has a gate. The numbers open, temperature, keep and pull are
/// those of parts/layer_skip/gate.hpp.
template <class P> concept LayerSkip =
    detail::names_itself<P> && detail::comparable<P> && detail::tells_gates<P> && detail::tells_gate_numbers<P>;

}  // namespace moeskip
