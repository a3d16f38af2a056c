// What expert dropout masks in one layer of a training step: experts, for all rows or for each, and experts' outputs and
// activations where the policy has any.
#pragma once

#include "moeskip/memory/arena.hpp"
#include "moeskip/ops/activation_mask.hpp"
#include "moeskip/ops/draw_survivors.hpp"
#include "moeskip/ops/mask_outputs.hpp"

namespace moeskip {

/// The experts that rows (N) may choose: one set for all, which the host draws, or one for each, drawn where rows are
/// routed. `key` says where, but for the token. Throws config_error where fewer than at_least of the E are left, of each
/// row as draw_survivors does.
template <class B, ExpertDropout P> living_experts draw_living_experts(B& b, const P& dropout, const mask_key& key,
                                                                       const token_rows& rows, int E, int at_least,
                                                                       arena& memory) {
  if constexpr (detail::has_scope<P>)
    if (const mask_scope scope = scope_of(dropout); scope != mask_scope::step) {
      const vec<expert_set> sets = memory.take<expert_set>(rows.size());
      draw_survivors(b, sets, survivors_of<P>{dropout, key, scope, rows, E, at_least});
      return {sets};
    }
  const vec<expert_set> one = memory.of_host().take<expert_set>(1);
  one[0] = expert_set::first(E);
  one[0] &= dropout.survivors(key, E, at_least);
  expect_survivors(P::name, {one}, at_least);
  return {one};
}

namespace detail {

/// A policy's probability, to be divided by its complement. Throws config_error.
template <class P> float checked_probability(float p) {
  MOESKIP_CHECK(config_error, p >= 0 && p < 1, "expert_dropout ", P::name, ": a probability must be in [0, 1), got ",
                p);
  return p;
}

}  // namespace detail

/// The mask of the activations of this layer's experts; it masks nothing where the policy does not.
template <ExpertDropout P>
activation_mask draw_activations(const P& dropout, const mask_key& key, const token_rows& rows) {
  if constexpr (detail::masks_activations<P>)
    return {detail::checked_probability<P>(dropout.activation_dropout(key)), key.from, key.step, key.layer, rows};
  else return {};
}
/// That of their outputs.
template <ExpertDropout P> output_mask draw_outputs(const P& dropout, const mask_key& key, const token_rows& rows) {
  if constexpr (detail::masks_outputs<P>)
    return {detail::checked_probability<P>(dropout.output_dropout(key)), key.from, key.step, key.layer, rows};
  else return {};
}

}  // namespace moeskip
