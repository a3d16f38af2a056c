// The survivors of expert dropout in one layer of a training step: one set for all rows, or one for each.
#pragma once

#include "moeskip/base/parallel.hpp"
#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/memory/arena.hpp"
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

}  // namespace moeskip
