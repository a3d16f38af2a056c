// Router: scores a token's experts, chooses some, and says how much each counts.
//
//   struct my_router {                                     // an aggregate of hyper-parameters
//     static constexpr std::string_view name = "mine";
//     static constexpr int experts_per_token = 2;
//     template <class T> MOESKIP_HD void forward(const routed_token<T>& t) const;
//     template <class T> MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability,
//                                                 T* dlogits) const;
//     friend bool operator==(const my_router&, const my_router&) = default;
//   };
//
// Both functions see one token and touch nothing else, so every backend runs them. Optional members: balance_loss and
// z_loss (weights of the auxiliary losses), capacity(tokens, experts) (drops the overflow while training).
#pragma once

#include <concepts>
#include <string_view>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/base/scalar.hpp"

namespace moeskip {

/// One token as a router sees it: E experts, K of them to choose.
template <class T> struct routed_token {
  const T* logits;          // (E) in
  T* probability;           // (E) out: over the living experts, zero for the others; feeds the balance loss
  int* chosen;              // (K) out: distinct living experts, best first
  T* gate;                  // (K) out: the weight of each chosen expert's output
  int experts;              // E
  const expert_set* alive;  // experts that may be chosen; at least K of them
};

namespace detail {
template <class P> concept names_itself = requires {
  { P::name } -> std::convertible_to<std::string_view>;
};
template <class P> concept has_experts_per_token = requires {
  { P::experts_per_token } -> std::convertible_to<int>;
};
template <class P> concept comparable = std::equality_comparable<P>;
template <class P> concept routes_forward = requires(const P& p, const routed_token<float>& t) {
  p.template forward<float>(t);
};
template <class P> concept routes_backward = requires(const P& p, const routed_token<float>& t, float* g) {
  p.template backward<float>(t, g, g, g);
};
}  // namespace detail

/// forward fills probability, chosen and gate. backward adds to dlogits (E), given dgate (K) and the gradient that the
/// balance loss left in dprobability (E), which it may use as scratch.
template <class P> concept Router = detail::names_itself<P> && detail::has_experts_per_token<P> &&
    detail::comparable<P> && detail::routes_forward<P> && detail::routes_backward<P>;

/// Whether a router limits how many tokens an expert takes while training.
template <class P> concept HasCapacity = requires(const P& p) {
  { p.capacity(index_t{}, int{}) } -> std::convertible_to<index_t>;
};

}  // namespace moeskip
