// Router: scores a token's experts, chooses some, and says how much each counts.
//
//   struct my_router {                                     // an aggregate of hyper-parameters
//     static constexpr std::string_view name = "mine";
//     static constexpr int experts_per_token = 2;
//     template <class T> MOESKIP_HD void score(const routed_token<T>& t) const;   // fills t.probability
//     template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const;  // fills t.chosen
//     template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const;   // fills t.gate
//     template <class T> MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability,
//                                                 T* dlogits) const;
//     friend bool operator==(const my_router&, const my_router&) = default;
//   };
//
// The functions see one token and touch nothing else, so every backend runs them.
//   A router made from another one, R, holds it as `R base`, says `using base_type = R`, and has, beside name,
// experts_per_token and operator==, only what it changes: steps and properties that it lacks are R's. Such routers
// nest.
//   Optional members are listed at the end of this file.
#pragma once

#include <concepts>
#include <string_view>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/base/lanes.hpp"
#include "moeskip/base/rng.hpp"
#include "moeskip/base/scalar.hpp"

namespace moeskip {

/// Where a router's noise is drawn while training: the same coordinates give the same noise in backward.
struct noise_key {
  seed from;
  std::uint64_t step, row;  // row: the token's place in the batch
};

/// One token as a router sees it: E experts, K of them to choose.
template <class T> struct routed_token {
  const T* logits;                   // (E) in; (E · logits_per_expert) where the router asks for more
  T* probability;                    // (E) out: over the living experts, zero for the others; feeds the balance loss
  int* chosen;                       // (K) out: distinct living experts, best first; -1 behind them: fewer than K
  T* gate;                           // (K) out: the weight of each chosen expert's output
  int experts;                       // E
  const expert_set* alive;           // experts that may be chosen; at least K of them, fewer only where a wrapper asks
  const T* bias = nullptr;           // (E) added to what the choice compares, and to nothing else; null: none
  const int* previous = nullptr;     // (K) experts of the sequence's token before this one, for choose; null: none
  int layer = 0, position = 0;       // of the token
  int token = -1;                    // its vocabulary id; -1: not known
  double progress = 1;               // share of the training's steps that are done; 1 where nothing is trained
  const noise_key* noise = nullptr;  // while training; null: no noise
  warp_lanes by{};                   // who makes it, with routers that are made by warps; none: one thread
};

namespace detail {
template <class P> concept names_itself = requires {
  { P::name } -> std::convertible_to<std::string_view>;
};
template <class P> concept has_experts_per_token = requires {
  { P::experts_per_token } -> std::convertible_to<int>;
};
template <class P> concept comparable = std::equality_comparable<P>;
template <class P> concept has_score = requires(const P& p, const routed_token<float>& t) {
  p.template score<float>(t);
};
template <class P> concept has_choose = requires(const P& p, const routed_token<float>& t) {
  p.template choose<float>(t);
};
template <class P> concept has_weigh = requires(const P& p, const routed_token<float>& t) {
  p.template weigh<float>(t);
};
template <class P> concept has_backward = requires(const P& p, const routed_token<float>& t, float* g) {
  p.template backward<float>(t, g, g, g);
};
template <class P> concept wraps_router = requires(const P& p) {
  { p.base } -> std::convertible_to<const typename P::base_type&>;
};
// A step of its own, or somewhere in the nest.
template <class P> inline constexpr bool scores = has_score<P>;
template <wraps_router P> inline constexpr bool scores<P> = has_score<P> || scores<typename P::base_type>;
template <class P> inline constexpr bool chooses = has_choose<P>;
template <wraps_router P> inline constexpr bool chooses<P> = has_choose<P> || chooses<typename P::base_type>;
template <class P> inline constexpr bool weighs = has_weigh<P>;
template <wraps_router P> inline constexpr bool weighs<P> = has_weigh<P> || weighs<typename P::base_type>;
template <class P> inline constexpr bool routes_backward = has_backward<P>;
template <wraps_router P> inline constexpr bool routes_backward<P> =
    has_backward<P> || routes_backward<typename P::base_type>;
}  // namespace detail

/// The steps are called in this order; choose may look at probability, and puts -1 behind the last one where fewer than
/// K are alive. backward adds to dlogits (E), given dgate (K) and the gradient that the auxiliary losses left in
/// dprobability (E), which it may use as scratch. It takes `chosen` as it stands, however it came about.
template <class P> concept Router = detail::names_itself<P> && detail::has_experts_per_token<P> &&
    detail::comparable<P> && detail::scores<P> && detail::chooses<P> && detail::weighs<P> && detail::routes_backward<P>;

namespace router {
/// A router's steps, wherever in a nest they stand.
template <class T, class R> MOESKIP_HD void score(const R& r, const routed_token<T>& t) {
  if constexpr (detail::has_score<R>) r.template score<T>(t);
  else router::score<T>(r.base, t);
}
template <class T, class R> MOESKIP_HD void choose(const R& r, const routed_token<T>& t) {
  if constexpr (detail::has_choose<R>) r.template choose<T>(t);
  else router::choose<T>(r.base, t);
}
template <class T, class R> MOESKIP_HD void weigh(const R& r, const routed_token<T>& t) {
  if constexpr (detail::has_weigh<R>) r.template weigh<T>(t);
  else router::weigh<T>(r.base, t);
}
template <class T, class R>
MOESKIP_HD void backward(const R& r, const routed_token<T>& t, const T* dgate, T* dprobability, T* dlogits) {
  if constexpr (detail::has_backward<R>) r.template backward<T>(t, dgate, dprobability, dlogits);
  else router::backward<T>(r.base, t, dgate, dprobability, dlogits);
}
}  // namespace router

// ---- what a router may have beside ----

/// `using made_by_warps = my_router;`: on a GPU the lanes of a warp run its steps together, each on experts of its own
/// (router::together, parts/router/scoring.hpp), where otherwise one thread does all. It names the router, since one
/// that derives from it may have steps that know nothing of lanes. A router made from another one is made by warps if
/// that is, and says so if it has steps of its own. The rules of its steps:
///   all lanes write chosen, alike; probability and gate belong to the lanes by.has(i)
///   of scores and biases that a step hands on, a lane has filled in those of its own experts, and no others are read
///   before reading what other lanes wrote, by.sync()
template <class P> inline constexpr bool made_by_warps = [] {
  constexpr bool knows = requires { requires std::same_as<typename P::made_by_warps, P>; };
  constexpr bool has_steps = detail::has_score<P> || detail::has_choose<P> || detail::has_weigh<P>;
  if constexpr (detail::wraps_router<P>) return (knows || !has_steps) && made_by_warps<typename P::base_type>;
  else return knows;
}();

/// `index_t capacity(index_t tokens, int experts) const`: limits how many tokens an expert takes while training.
template <class P> concept HasCapacity = requires(const P& p) {
  { p.capacity(index_t{}, int{}) } -> std::convertible_to<index_t>;
};
/// `static constexpr bool drops_at_inference = true`, with `index_t capacity_at_inference(index_t tokens, int experts)
/// const`: experts are limited there too, so that a token's result depends on the rows of its call.
template <class P> inline constexpr bool drops_at_inference = [] {
  if constexpr (requires { P::drops_at_inference; }) return P::drops_at_inference;
  else if constexpr (detail::wraps_router<P>) return drops_at_inference<typename P::base_type>;
  else return false;
}();
/// What the others do.
template <class P> concept KeepsAllTokens = !drops_at_inference<P>;
/// `template <class T> void choose_rows(const rows_to_choose<T>&) const`: experts choose tokens, seeing the whole call.
/// Only training can do that: a token's experts then depend on later tokens.
template <class P> inline constexpr bool experts_choose = [] {
  if constexpr (requires { P::experts_choose; }) return P::experts_choose;
  else if constexpr (detail::wraps_router<P>) return experts_choose<typename P::base_type>;
  else return false;
}();
template <class P> concept ChoosesRows = experts_choose<P>;
/// `static constexpr bool follows_previous = true`: choices look at routed_token::previous.
template <class P> inline constexpr bool follows_previous = [] {
  if constexpr (requires { P::follows_previous; }) return P::follows_previous;
  else if constexpr (detail::wraps_router<P>) return follows_previous<typename P::base_type>;
  else return false;
}();
/// `static constexpr int segment_length = 4`: tokens whose positions start at a multiple of it have choices in common;
/// default 1, every token chooses alike.
template <class P> inline constexpr int segment_length = [] {
  if constexpr (requires { P::segment_length; }) return P::segment_length;
  else if constexpr (detail::wraps_router<P>) return segment_length<typename P::base_type>;
  else return 1;
}();
/// `static constexpr bool has_selection_bias = true`: the model keeps a bias per expert, moved against its load.
template <class P> inline constexpr bool has_selection_bias = [] {
  if constexpr (requires { P::has_selection_bias; }) return P::has_selection_bias;
  else if constexpr (detail::wraps_router<P>) return has_selection_bias<typename P::base_type>;
  else return false;
}();
/// `static constexpr int logits_per_expert = 2`: rows of router weights per expert; default 1, 0 for none at all.
template <class P> inline constexpr int logits_per_expert = [] {
  if constexpr (requires { P::logits_per_expert; }) return P::logits_per_expert;
  else if constexpr (detail::wraps_router<P>) return logits_per_expert<typename P::base_type>;
  else return 1;
}();

}  // namespace moeskip
