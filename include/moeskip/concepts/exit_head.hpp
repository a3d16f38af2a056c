// ExitHead: how the residual stream x after e layers becomes logits. A head is a norm and a projection, and between the
// two there may be a low-rank correction; the policy says whose they are.
//   h = norm(x),   logits = projection (h + up (down h))
#pragma once

#include <concepts>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/concepts/router.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct sizes;  // parts/sizes.hpp

template <class W> struct head_weights {
  vec<W> norm;        // (D)
  mat<W> projection;  // (V, D)
  mat<W> down, up;    // (r, D) (D, r), r at most V; empty: no correction
};

namespace detail {
struct any_tensor {
  void operator()(auto&&...) const {}
};
template <class P> concept has_head_weights = requires { typename P::template weights<float>; };
template <class P> concept lists_tensors = requires(typename P::template weights<float>& w, const P& p, const sizes& s,
                                                    const layer_set& exits) {
  w.tensors(p, s, exits, any_tensor{});
};
template <class P>
concept finds_head = requires(const typename P::template weights<float>& w, const head_weights<float>& top) {
  { w.has(int{}) } -> std::convertible_to<bool>;
  { w.at(int{}, top) } -> std::same_as<head_weights<float>>;
};
}  // namespace detail

/// weights<W>::tensors(policy, sizes, exits, tensor) lists what the exits own; has(e) says whether
/// logits can be taken after e layers, and at(e, top) is the head there, where `top` is the head of the full model.
template <class P> concept ExitHead = detail::names_itself<P> && detail::comparable<P> && detail::has_head_weights<P> &&
    detail::lists_tensors<P> && detail::finds_head<P>;

}  // namespace moeskip
