// Routing of N rows: the router's per-token function on every row, the load of each expert, and the auxiliary losses.
//   balance = mean_n E'_n Σ_e load_e · p_n,e   Switch Transformer, arXiv:2101.03961, eq. 4; E'_n living experts of row n.
//             load_e is the share of all N·K choices of all rows, so a perfectly balanced router has 1 whatever K is.
//             Where rows have sets of their own, it has mean E'_n / E, and still no row a gradient. Its gradient goes
//             through p only, since choices are discrete.
//   z       = mean_n (log Σ_e exp logit_n,e)²  over the living experts; ST-MoE, arXiv:2202.08906, eq. 5
//   change  = mean over rows that follow one of ½ Σ_e (p_n,e − p_{n−1},e)²: how much routing moves along a sequence
#pragma once

#include <algorithm>
#include <type_traits>

#include "moeskip/base/math.hpp"
#include "moeskip/concepts/router.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/routing.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

/// What a routing knows beside its logits.
template <class T> struct routing_call {
  living_experts alive{};
  token_rows rows{};    // (N); empty: rows stand alone
  cube<int> past{};     // (S, C, K) experts of earlier tokens, read and written; empty: none are kept
  vec<const T> bias{};  // (E) selection bias; empty: none
  vec<int> unsound{};   // (1) where a backend that runs late says that some row's choices are none; empty: it does not
  int layer = 0;
  bool training = false;  // then `from` and `step` key the router's noise
  seed from{};
  std::uint64_t step = 0;
  double progress = 1;  // of the training
};

struct auxiliary_weights {
  double balance = 0, z = 0, change = 0;
};

namespace detail {

/// Throws shape_error or config_error unless the call fits N rows, E experts and K choices.
template <class T> void expect_call(std::string_view op, const routing_call<T>& call, index_t N, index_t E, index_t K) {
  MOESKIP_CHECK(shape_error, E <= expert_set::capacity, op, ": at most ", expert_set::capacity, " experts, got ", E);
  if (call.alive.sets.size() != 1) expect_shape(op, "alive.sets", call.alive.sets, N);
  if (call.bias.size()) expect_shape(op, "bias", call.bias, E);
  if (call.rows.size())
    expect_shape(op, "rows.position", call.rows.position, N), expect_shape(op, "rows.slot", call.rows.slot, N);
  if (call.rows.token.size()) expect_shape(op, "rows.token", call.rows.token, N);
  if (!call.past.size()) return;
  expect_shape(op, "past", call.past, call.past.extent(0), call.past.extent(1), K);
  expect_shape(op, "rows.position", call.rows.position, N);
  for (index_t n = 0; n < N; ++n)
    MOESKIP_CHECK(config_error,
                  call.rows.slot[n] >= 0 && call.rows.slot[n] < call.past.extent(0) && call.rows.position[n] >= 0 &&
                      call.rows.position[n] < call.past.extent(1),
                  op, ": row ", n, " is token ", call.rows.position[n], " of sequence ", call.rows.slot[n],
                  ", beyond the memory of ", call.past.extent(1), " tokens of ", call.past.extent(0), " sequences");
}

/// Throws like that where r is not what R makes of logits, or needs vocabulary ids that the call does not have.
template <class R, class T> void expect_routing(std::string_view op, const routing<T>& r,
                                                std::type_identity_t<mat<const T>> logits,
                                                const routing_call<T>& call) {
  const index_t N = logits.rows(), E = r.probability.cols(), K = R::experts_per_token;
  expect_shape(op, "logits", logits, N, E * logits_per_expert<R>);
  expect_shape(op, "probability", r.probability, N, E);
  expect_shape(op, "chosen", r.chosen, N, K);
  expect_shape(op, "gate", r.gate, N, K);
  expect_shape(op, "load", r.load, E);
  expect_call(op, call, N, E, K);
  MOESKIP_CHECK(config_error, logits_per_expert<R> > 0 || call.rows.token.size() == N, "router ", R::name,
                " routes by vocabulary id: this call has none");
}

/// Row n as a router sees it; `noise` is memory for its key.
template <class T> MOESKIP_HD routed_token<T> token_at(const routing_call<T>& call, const routing<T>& r,
                                                       mat<const T> logits, index_t n, noise_key& noise) {
  routed_token<T> t{logits.row(n).data(), r.probability.row(n).data(), r.chosen.row(n).data(),
                    r.gate.row(n).data(), int(r.probability.cols()),   &call.alive.of(n)};
  t.layer = call.layer, t.progress = call.progress;
  if (call.bias.size()) t.bias = call.bias.data();
  if (call.training) t.noise = &(noise = {call.from, call.step, call.rows.size() ? call.rows.id(n) : std::uint64_t(n)});
  if (!call.rows.size()) return t;
  const int slot = call.rows.slot[n], position = t.position = call.rows.position[n];
  if (call.rows.token.size()) t.token = call.rows.token[n];
  if (call.rows.follows(n)) {
    t.previous = r.chosen.row(n - 1).data();
  } else if (call.past.size() && position > 0) {
    const int* before = call.past.plane(slot).row(position - 1).data();
    t.previous = before[0] < 0 ? nullptr : before;
  }
  return t;
}

/// Throws config_error for an expert that does not exist, or that must not be chosen, among those of a row (K).
inline void expect_choices(vec<const int> chosen, int experts, const expert_set& alive) {
  for (const int e : chosen) {
    MOESKIP_CHECK(config_error, e >= 0 && e < experts, "the router chose expert ", e, " of ", experts);
    MOESKIP_CHECK(config_error, alive.contains(e), "the router chose expert ", e, ", which was dropped out");
  }
}

/// The router's forward on rows [first, last); a row that follows one in this range comes after it.
template <class T, class R> void route_rows(const routing<T>& r, mat<const T> logits, const R& router,
                                            const routing_call<T>& call, index_t first, index_t last) {
  for (index_t n = first; n < last; ++n) {
    noise_key noise;
    const routed_token<T> t = token_at(call, r, logits, n, noise);
    router::score<T>(router, t);
    if constexpr (ChoosesRows<R>) continue;
    router::choose<T>(router, t);
    expect_choices(r.chosen.row(n), t.experts, *t.alive);
    router::weigh<T>(router, t);
  }
}

/// Where experts choose: after all rows are scored.
template <class T, class R, class Memory> void choose_rows(const routing<T>& r, mat<const T> logits, const R& router,
                                                           const routing_call<T>& call, Memory& memory) {
  const auto scope = memory.scope();
  router.template choose_rows<T>(r.chosen, r.probability, memory.template take<int>(logits.rows()));
  for (index_t n = 0; n < logits.rows(); ++n) {
    noise_key noise;
    router::weigh<T>(router, token_at(call, r, logits, n, noise));
  }
}

/// The load of every expert, and the memory of the choices.
template <class T> void note_choices(const routing<T>& r, const routing_call<T>& call) {
  index_t choices = 0;
  for (T& load : r.load) load = T{};
  for (const int e : r.chosen)
    if (e >= 0) r.load[e] += T(1), ++choices;
  for (T& load : r.load) load /= T(real_t<T>(choices ? choices : 1));
  if (call.past.size())
    for (index_t n = 0; n < r.chosen.rows(); ++n)
      for (index_t k = 0; k < r.chosen.cols(); ++k)
        call.past.plane(call.rows.slot[n]).row(call.rows.position[n])[k] = r.chosen(n, k);
}

}  // namespace detail

/// Fills r: the router's forward on every row, and the load of every expert. Throws shape_error, and config_error where
/// a router needs vocabulary ids that the call does not have, or chose an expert that it must not: on a backend that
/// runs late nobody knows yet, and who asked looks when they do (expect_choices).
struct route_t {
  static constexpr const char* name = "route";
  template <class B, Router R, class Memory>
  void operator()(B& b, const routing<scalar_t<B>>& r, mat<const scalar_t<B>> logits, const R& router,
                  const routing_call<scalar_t<B>>& call, Memory& memory) const {
    detail::expect_routing<R>(name, r, logits, call);
    run_kernel<route_t>(b, r, logits, router, call);
    if constexpr (ChoosesRows<R>) settle(b), detail::choose_rows(r, logits, router, call, memory);
    if constexpr (ChoosesRows<R> || !runs_late<B>) detail::note_choices(r, call);
  }
};
inline constexpr route_t route{};

/// dlogits(N, E · logits_per_expert) = …, from dgate(N,K) and the weights of the auxiliary losses. Throws shape_error.
struct route_backward_t {
  static constexpr const char* name = "route_backward";
  template <class B, Router R, class Memory>
  void operator()(B& b, mat<scalar_t<B>> dlogits, mat<const scalar_t<B>> dgate, mat<const scalar_t<B>> logits,
                  const routing<scalar_t<B>>& r, const R& router, const routing_call<scalar_t<B>>& call,
                  const auxiliary_weights& weights, Memory& memory) const {
    const index_t N = logits.rows(), E = r.probability.cols(), K = R::experts_per_token;
    expect_shape(name, "logits", logits, N, E * logits_per_expert<R>);
    expect_shape(name, "dlogits", dlogits, N, logits.cols());
    expect_shape(name, "dgate", dgate, N, K);
    expect_shape(name, "chosen", r.chosen, N, K);
    expect_shape(name, "gate", r.gate, N, K);
    detail::expect_call(name, call, N, E, K);
    run_kernel<route_backward_t>(b, dlogits, dgate, logits, r, router, call, weights, memory);
  }
};
inline constexpr route_backward_t route_backward{};

/// sum (1) += the auxiliary losses of a routing, unweighted. Throws shape_error.
struct balance_loss_t {
  static constexpr const char* name = "balance_loss";
  template <class B> void operator()(B& b, vec<auxiliary_losses<scalar_t<B>>> sum, const routing<scalar_t<B>>& r,
                                     mat<const scalar_t<B>> logits, const routing_call<scalar_t<B>>& call) const {
    expect_shape(name, "sum", sum, 1);
    expect_shape(name, "load", r.load, r.probability.cols());
    const index_t E = r.probability.cols(), per_expert = logits.cols() ? std::max<index_t>(1, logits.cols() / E) : 0;
    expect_shape(name, "logits", logits, r.probability.rows(), E * per_expert);
    run_kernel<balance_loss_t>(b, sum, r, logits, call);
  }
};
inline constexpr balance_loss_t balance_loss{};

namespace detail {

/// log Σ exp of a row's logits over the living experts.
template <class T> MOESKIP_HD T log_sum_exp_alive(const T* logits, index_t experts, const expert_set& alive) {
  return log_sum_exp(logits, experts, [&](index_t e) { return alive.contains(int(e)); });
}

/// Rows that follow one in their sequence: over them the change is averaged.
inline index_t following(const token_rows& rows) {
  index_t count = 0;
  for (index_t n = 1; n < rows.size(); ++n) count += rows.follows(n);
  return count;
}

}  // namespace detail

template <> struct kernel<route_t, on_reference> {
  template <class B, class T, class R>
  static void run(B&, const routing<T>& r, mat<const T> logits, const R& router, const routing_call<T>& call) {
    detail::route_rows(r, logits, router, call, 0, logits.rows());
  }
};

template <> struct kernel<route_backward_t, on_reference> {
  template <class B, class T, class R, class Memory>
  static void run(B&, mat<T> dlogits, mat<const T> dgate, mat<const T> logits, const routing<T>& r, const R& router,
                  const routing_call<T>& call, const auxiliary_weights& weights, Memory& memory) {
    const auto scope = memory.scope();
    const vec<T> dprobability = memory.template take<T>(r.probability.cols());
    const index_t following = weights.change != 0 ? detail::following(call.rows) : 0;
    for (index_t n = 0; n < logits.rows(); ++n)
      row(dlogits, dgate, logits, r, router, call, weights, following, n, dprobability);
  }

  /// One row; dprobability (E) is scratch.
  template <class T, class R> MOESKIP_HD static void row(mat<T> dlogits, mat<const T> dgate, mat<const T> logits,
                                                         const routing<T>& r, const R& router,
                                                         const routing_call<T>& call, const auxiliary_weights& weights,
                                                         index_t following, index_t n, vec<T> dprobability) {
    using std::exp;
    const index_t E = r.probability.cols();
    const T rows(real_t<T>(logits.rows()));
    const expert_set& living = call.alive.of(n);
    const T balance = T(real_t<T>(weights.balance)) * T(real_t<T>(living.size())) / rows;
    for (index_t e = 0; e < E; ++e) dprobability[e] = balance * r.load[e];
    if (following)
      add_change<T>(dprobability, r.probability, call.rows, n, T(real_t<T>(weights.change / double(following))));
    for (T& d : dlogits.row(n)) d = T{};
    noise_key noise;
    const routed_token<T> token = detail::token_at(call, r, logits, n, noise);
    router::backward<T>(router, token, dgate.row(n).data(), dprobability.data(), dlogits.row(n).data());
    if (weights.z == 0 || logits.cols() == 0) return;
    const T lse = detail::log_sum_exp_alive(logits.row(n).data(), E, living);
    const T factor = T(real_t<T>(2 * weights.z)) * lse / rows;
    for (index_t e = 0; e < E; ++e)
      if (living.contains(int(e))) dlogits(n, e) += factor * exp(logits(n, e) - lse);
  }

  /// dp += weight · (what row n adds to the change from the row before, and to that of the row after).
  template <class T>
  MOESKIP_HD static void add_change(vec<T> dp, mat<const T> p, const token_rows& rows, index_t n, const T& weight) {
    for (index_t e = 0; e < p.cols(); ++e) {
      if (rows.follows(n)) dp[e] += weight * (p(n, e) - p(n - 1, e));
      if (rows.follows(n + 1)) dp[e] += weight * (p(n, e) - p(n + 1, e));
    }
  }
};

template <> struct kernel<balance_loss_t, on_reference> {
  template <class B, class T> static void run(B&, vec<auxiliary_losses<T>> sum, const routing<T>& r,
                                              mat<const T> logits, const routing_call<T>& call) {
    const index_t following = detail::following(call.rows);
    auxiliary_losses<T> losses;
    for (index_t n = 0; n < r.probability.rows(); ++n) losses += row(r, logits, call, following, n);
    sum[0] += losses;
  }

  /// What row n adds.
  template <class T> MOESKIP_HD static auxiliary_losses<T> row(const routing<T>& r, mat<const T> logits,
                                                               const routing_call<T>& call, index_t following,
                                                               index_t n) {
    const mat<const T> p = r.probability;
    const expert_set& living = call.alive.of(n);
    const T rows = T(real_t<T>(p.rows()));
    auxiliary_losses<T> losses;
    for (index_t e = 0; e < p.cols(); ++e) {
      losses.balance += r.load[e] * p(n, e);
      if (call.rows.follows(n)) losses.change += (p(n, e) - p(n - 1, e)) * (p(n, e) - p(n - 1, e));
    }
    losses.balance *= T(real_t<T>(living.size())) / rows;
    losses.change /= T(real_t<T>(std::max<index_t>(1, 2 * following)));
    if (logits.cols() == 0) return losses;
    const T lse = detail::log_sum_exp_alive(logits.row(n).data(), p.cols(), living);
    losses.z = lse * lse / rows;
    return losses;
  }
};

}  // namespace moeskip
