// What expert dropout draws for one layer of a training step: the survivors, one set for all rows or one for each, and
// the masks of experts' outputs and activations where the policy has any.
#pragma once

#include "moeskip/base/parallel.hpp"
#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/memory/arena.hpp"
#include "moeskip/ops/activation_mask.hpp"
#include "moeskip/ops/route.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// Who shares a draw of a policy.
template <ExpertDropout P> constexpr mask_scope scope_of(const P& dropout) {
  if constexpr (detail::has_scope<P>) return dropout.drawn_per();
  else return mask_scope::step;
}

/// Throws config_error where fewer than at_least of the E experts are left.
template <ExpertDropout P> expert_set draw_survivors(const P& dropout, const mask_key& key, int E, int at_least) {
  expert_set set = expert_set::first(E);
  set &= dropout.survivors(key, E, at_least);
  MOESKIP_CHECK(config_error, set.size() >= at_least, "expert_dropout ", P::name,
                " left fewer experts than a token visits: expected at least ", at_least, ", got ", set.size());
  return set;
}

/// The sets of all rows (N), on the arena. `key` says where, but for the token.
template <ExpertDropout P> living_experts draw_survivors(const P& dropout, const mask_key& key, const token_rows& rows,
                                                         int E, int at_least, arena& memory) {
  const mask_scope scope = scope_of(dropout);
  vec<expert_set> sets = memory.take<expert_set>(scope == mask_scope::step ? 1 : rows.size());
  if (scope == mask_scope::step) {
    sets[0] = draw_survivors(dropout, key, E, at_least);
    return {sets};
  }
  parallel_for(
      rows.size(),
      [&](index_t first, index_t last) {
        mask_key one = key;
        for (index_t n = first; n < last; ++n) {
          one.token = scope == mask_scope::sequence ? rows.slot_id(n) : rows.id(n);
          const bool again = scope == mask_scope::sequence && n > first && rows.slot[n] == rows.slot[n - 1];
          sets[n] = again ? sets[n - 1] : draw_survivors(dropout, one, E, at_least);
        }
      },
      64);
  return {sets};
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

/// value (N, K), by choice: those whose expert's output is left out become 0, the others are divided by 1 − p. Applied
/// to the gates it gives the weights of the outputs; applied to the weights' gradient, that of the gates.
template <ExpertDropout P, class T>
void mask_outputs(const P& dropout, const mask_key& key, const token_rows& rows, mat<const int> chosen, mat<T> value) {
  if constexpr (detail::masks_outputs<P>) {
    const float p = detail::checked_probability<P>(dropout.output_dropout(key));
    if (p == 0) return;
    const draws draw{key.from, stream::expert_output};
    const T kept = T(real_t<T>(1 / (1 - double(p))));
    for (index_t n = 0; n < chosen.rows(); ++n)
      for (index_t k = 0; k < chosen.cols(); ++k) {
        if (chosen(n, k) < 0) continue;
        const float height = draw.uniform(key.step, std::uint64_t(key.layer), rows.id(n), std::uint64_t(chosen(n, k)));
        value(n, k) *= height < p ? T{} : kept;
      }
  }
}

}  // namespace moeskip
