// ExpertDropout: which experts a training step may use. Routers see only the survivors, so the gates are redistributed
// among them, in value and in gradient. Optional members:
//   mask_scope drawn_per() const                        how many rows share a set of survivors; without it, all of a step
//   float output_dropout(const mask_key& key) const     chance that a chosen expert's output is left out for one token
//   float activation_dropout(const mask_key& key) const chance that one unit of an expert's activation is 0 for one token
// Of the two chances the model draws the masks and divides what is left by 1 - p. Inference asks for none of this.
#pragma once

#include <concepts>
#include <cstdint>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/concepts/router.hpp"

namespace moeskip {

/// Which rows share a draw: all of a step, those of one sequence, or none.
enum class mask_scope { step, sequence, token };

/// Where a mask is drawn: the same coordinates give the same mask, on every backend and in backward.
struct mask_key {
  seed from;
  std::uint64_t step;
  int layer, layers;
  double progress = 1;      // share of the planned steps that are done, in [0, 1]
  std::uint64_t token = 0;  // token_rows::id or slot_id of the row; 0 where all rows share the mask
};

namespace detail {
template <class P> concept tells_survivors = requires(const P& p, const mask_key& key) {
  { p.survivors(key, int{}, int{}) } -> std::same_as<expert_set>;
};
template <class P> concept has_scope = requires(const P& p) {
  { p.drawn_per() } -> std::same_as<mask_scope>;
};
template <class P> concept masks_outputs = requires(const P& p, const mask_key& key) {
  { p.output_dropout(key) } -> std::convertible_to<float>;
};
template <class P> concept masks_activations = requires(const P& p, const mask_key& key) {
  { p.activation_dropout(key) } -> std::convertible_to<float>;
};
}  // namespace detail

/// survivors(key, experts, at_least) returns a set of at least `at_least` of the experts. Where a policy has drawn_per(),
/// rows are asked for on several threads; on a GPU by the GPU's, so there it is a MOESKIP_HD function of a policy that can
/// be copied bit by bit.
template <class P> concept ExpertDropout =
    detail::names_itself<P> && detail::comparable<P> && detail::tells_survivors<P>;

/// Who shares a draw of a policy.
template <ExpertDropout P> constexpr mask_scope scope_of(const P& dropout) {
  if constexpr (detail::has_scope<P>) return dropout.drawn_per();
  else return mask_scope::step;
}

}  // namespace moeskip
