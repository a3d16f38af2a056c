// Which experts each row of a training step may choose: what a policy of expert dropout draws for a sequence or a token,
// from the same key the same on every backend.
//   N rows   E experts   sets (N)
#pragma once

#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/routing.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// A row's set, as a function of its number.
template <ExpertDropout P> struct survivors_of {
  P dropout;
  mask_key key;  // but for the token
  mask_scope scope;
  token_rows rows;
  int experts, at_least;

  MOESKIP_HD expert_set operator()(index_t n) const {
    mask_key own = key;
    own.token = scope == mask_scope::sequence ? rows.slot_id(n) : rows.id(n);
    expert_set set = expert_set::first(experts);
    return set &= dropout.survivors(own, experts, at_least);
  }
  /// Those of rows [first, last). Rows of one sequence may share theirs.
  void fill(vec<expert_set> sets, index_t first, index_t last) const {
    for (index_t n = first; n < last; ++n) {
      const bool again = scope == mask_scope::sequence && n > first && rows.slot[n] == rows.slot[n - 1];
      sets[n] = again ? sets[n - 1] : (*this)(n);
    }
  }
};

/// Throws config_error where a policy of this name left a row fewer than at_least experts.
inline void expect_survivors(std::string_view policy, const living_experts& alive, int at_least) {
  for (const expert_set& set : alive.sets)
    MOESKIP_CHECK(config_error, set.size() >= at_least, "expert_dropout ", policy,
                  " left fewer experts than a token visits: expected at least ", at_least, ", got ", set.size());
}

/// Fills sets. Throws shape_error, and config_error where fewer experts are left than there must be: on a backend that
/// runs late nobody knows yet, and who asked looks when they do (expect_survivors).
struct draw_survivors_t {
  static constexpr const char* name = "draw_survivors";
  template <class B, class P> void operator()(B& b, vec<expert_set> sets, const survivors_of<P>& of) const {
    MOESKIP_CHECK(config_error, of.scope != mask_scope::step, name, ": a step has one set, and not one a row");
    expect_shape(name, "sets", sets, of.rows.size());
    expect_shape(name, "rows.slot", of.rows.slot, of.rows.size());
    run_kernel<draw_survivors_t>(b, sets, of);
    if constexpr (!runs_late<B>) expect_survivors(P::name, {sets}, of.at_least);
  }
};
inline constexpr draw_survivors_t draw_survivors{};

template <> struct kernel<draw_survivors_t, on_reference> {
  template <class B, class P> static void run(B&, vec<expert_set> sets, const survivors_of<P>& of) {
    of.fill(sets, 0, sets.size());
  }
};

}  // namespace moeskip
