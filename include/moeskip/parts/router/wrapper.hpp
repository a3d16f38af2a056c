// Routers made from another router (concepts/router.hpp): numbers looked up wherever in a nest they stand, and names.
#pragma once

#include <string>

#include "moeskip/base/check.hpp"
#include "moeskip/parts/router/scoring.hpp"

namespace moeskip::router {

/// The numbers of a wrapped router under names of their own: "base.balance_loss", "base.base.…".
template <class R, class Base, class F> constexpr void base_fields(Base& base, F&& f) {
  if constexpr (requires { R::fields(base, [](std::string_view, auto&) {}); })
    R::fields(base, [&](std::string_view field, auto& value) { f(text("base.", field), value); });
}

/// Whether a router with an onset, `from_layer` and `from_progress`, already does what it adds to its base.
template <class R, class T> MOESKIP_HD bool has_begun(const R& r, const routed_token<T>& t) {
  return t.layer >= r.from_layer && float(t.progress) >= r.from_progress;
}
constexpr std::string_view onset_problem(float from_progress) {
  return from_progress >= 0 && from_progress <= 1 ? "" : "router.from_progress must be in [0, 1]";
}

/// Weights of the auxiliary losses, wherever in a nest of wrappers they stand; 0 where nobody names one.
template <class R> constexpr double balance_weight(const R& r) {
  if constexpr (requires { r.balance_loss; }) return double(r.balance_loss);
  else if constexpr (requires { r.base; }) return balance_weight(r.base);
  else return 0;
}
template <class R> constexpr double z_weight(const R& r) {
  if constexpr (requires { r.z_loss; }) return double(r.z_loss);
  else if constexpr (requires { r.base; }) return z_weight(r.base);
  else return 0;
}
template <class R> constexpr double change_weight(const R& r) {
  if constexpr (requires { r.change_loss; }) return double(r.change_loss);
  else if constexpr (requires { r.base; }) return change_weight(r.base);
  else return 0;
}
/// How far a selection bias moves in a step at that share of the training.
template <class R> constexpr double bias_rate(const R& r, double progress) {
  if constexpr (requires { r.rate_at(progress); }) return r.rate_at(progress);
  else if constexpr (requires { r.base; }) return bias_rate(r.base, progress);
  else return 0;
}

/// Experts of a token on average: K, unless the router says otherwise.
template <class R> constexpr double active_experts(const R& r) {
  if constexpr (requires { r.active_experts(); }) return r.active_experts();
  else if constexpr (requires { r.base; }) return active_experts(r.base);
  else return R::experts_per_token;
}

/// Assignments that an expert takes of a training call; 0: no limit.
template <class R> index_t capacity_of(const R& r, index_t tokens, int experts) {
  if constexpr (HasCapacity<R>) return r.capacity(tokens, experts);
  else if constexpr (requires { r.base; }) return capacity_of(r.base, tokens, experts);
  else return 0;
}
/// The same of any other call.
template <class R> index_t capacity_at_inference_of(const R& r, index_t tokens, int experts) {
  if constexpr (requires { r.capacity_at_inference(tokens, experts); }) return r.capacity_at_inference(tokens, experts);
  else if constexpr (requires { r.base; }) return capacity_at_inference_of(r.base, tokens, experts);
  else return 0;
}

/// "top_k<2>", "segment<2, top_k<2>>": the name of a router with what it is made of.
template <class R> std::string full_name() {
  if constexpr (detail::wraps_router<R>) {
    std::string parameters;
    if constexpr (requires { R::parameters(); }) parameters = R::parameters();
    return text(R::name, "<", parameters, full_name<typename R::base_type>(), ">");
  } else return text(R::name, "<", R::experts_per_token, ">");
}

/// What is wrong with a router's numbers, or with them and this many experts; empty where nothing is.
template <class R> constexpr std::string_view problem_of(const R& r, int experts) {
  if constexpr (requires { r.problem(); })
    if (const std::string_view p = r.problem(); !p.empty()) return p;
  if constexpr (requires { r.problem(experts); })
    if (const std::string_view p = r.problem(experts); !p.empty()) return p;
  if constexpr (requires { r.base; }) return problem_of(r.base, experts);
  else return {};
}

}  // namespace moeskip::router
