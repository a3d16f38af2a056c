// ExpertDropout: which experts a training step may use. Routers see only the survivors, so the gates are redistributed
// among them, in value and in gradient.
#pragma once

#include <concepts>
#include <cstdint>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/concepts/router.hpp"

namespace moeskip {

/// Where a mask is drawn: the same coordinates give the same mask, on every backend and in backward.
struct mask_key {
  seed from;
  std::uint64_t step;
  int layer, layers;
  double progress = 1;  // share of the planned steps that are done, in [0, 1]
};

namespace detail {
template <class P> concept tells_survivors = requires(const P& p, const mask_key& key) {
  { p.survivors(key, int{}, int{}) } -> std::same_as<expert_set>;
};
}  // namespace detail

/// survivors(key, experts, at_least) returns a set of at least `at_least` of the experts.
template <class P> concept ExpertDropout =
    detail::names_itself<P> && detail::comparable<P> && detail::tells_survivors<P>;

}  // namespace moeskip
