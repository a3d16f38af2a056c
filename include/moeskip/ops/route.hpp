// Routing of N rows: the router's per-token function on every row, the load of each expert, and the auxiliary losses.
//   balance = E' Σ_e load_e · mean_n p_n,e     Switch Transformer, arXiv:2101.03961, eq. 4; E' living experts. load_e is
//             the share of all N·K choices, so a perfectly balanced router has 1 whatever K is. Its gradient goes through
//             p only, since choices are discrete.
//   z       = mean_n (log Σ_e exp logit_n,e)²  over the living experts; ST-MoE, arXiv:2202.08906, eq. 5
#pragma once

#include "moeskip/base/math.hpp"
#include "moeskip/concepts/router.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/routing.hpp"

namespace moeskip {

/// The experts that each row may choose: one set for all rows, or one per row.
struct living_experts {
  vec<const expert_set> sets;  // (1) or (N)
  const expert_set& of(index_t n) const { return sets[sets.size() == 1 ? 0 : n]; }
};

template <class T> struct balance_losses {
  T balance{}, z{};  // unweighted
};

/// Fills r: the router's forward on every row, and the load of every expert. Throws shape_error, and config_error for a
/// router that chose a dead expert.
struct route_t {
  static constexpr const char* name = "route";
  template <class B, Router R> void operator()(B& b, const routing<scalar_t<B>>& r, mat<const scalar_t<B>> logits,
                                               const R& router, const living_experts& alive) const {
    expect_shape(name, "probability", r.probability, logits.rows(), logits.cols());
    expect_shape(name, "chosen", r.chosen, logits.rows(), R::experts_per_token);
    expect_shape(name, "gate", r.gate, logits.rows(), R::experts_per_token);
    expect_shape(name, "load", r.load, logits.cols());
    run_kernel<route_t>(b, r, logits, router, alive);
    for (index_t n = 0; n < r.chosen.rows(); ++n)
      for (const int e : r.chosen.row(n))  // those that do not exist are refused by plan_dispatch
        MOESKIP_CHECK(config_error, e < 0 || e >= logits.cols() || alive.of(n).contains(e), "the router chose expert ",
                      e, ", which was dropped out");
  }
};
inline constexpr route_t route{};

/// dlogits(N,E) = …, from dgate(N,K) and the weights of both auxiliary losses. Throws shape_error.
struct route_backward_t {
  static constexpr const char* name = "route_backward";
  template <class B, Router R, class Memory>
  void operator()(B& b, mat<scalar_t<B>> dlogits, mat<const scalar_t<B>> dgate, mat<const scalar_t<B>> logits,
                  const routing<scalar_t<B>>& r, const R& router, const living_experts& alive, double balance_weight,
                  double z_weight, Memory& memory) const {
    expect_shape(name, "dlogits", dlogits, logits.rows(), logits.cols());
    expect_shape(name, "dgate", dgate, r.gate.rows(), r.gate.cols());
    run_kernel<route_backward_t>(b, dlogits, dgate, logits, r, router, alive, balance_weight, z_weight, memory);
  }
};
inline constexpr route_backward_t route_backward{};

/// Both auxiliary losses of routed rows. Throws shape_error.
struct balance_loss_t {
  static constexpr const char* name = "balance_loss";
  template <class B> balance_losses<scalar_t<B>> operator()(B& b, const routing<scalar_t<B>>& r,
                                                            mat<const scalar_t<B>> logits,
                                                            const living_experts& alive) const {
    expect_shape(name, "probability", r.probability, logits.rows(), logits.cols());
    expect_shape(name, "load", r.load, logits.cols());
    balance_losses<scalar_t<B>> losses;
    run_kernel<balance_loss_t>(b, losses, r, logits, alive);
    return losses;
  }
};
inline constexpr balance_loss_t balance_loss{};

template <> struct kernel<route_t, on_reference> {
  template <class B, class T, class R>
  static void run(B&, const routing<T>& r, mat<const T> logits, const R& router, const living_experts& alive) {
    const int E = int(logits.cols()), K = R::experts_per_token;
    for (index_t n = 0; n < logits.rows(); ++n)
      router.template forward<T>({logits.row(n).data(), r.probability.row(n).data(), r.chosen.row(n).data(),
                                  r.gate.row(n).data(), E, &alive.of(n)});
    const T share = T(1) / T(real_t<T>(logits.rows() * K));
    for (T& load : r.load) load = T{};
    for (const int e : r.chosen)
      if (e >= 0 && e < E) r.load[e] += share;  // plan_dispatch refuses the others
  }
};

template <> struct kernel<route_backward_t, on_reference> {
  template <class B, class T, class R, class Memory>
  static void run(B&, mat<T> dlogits, mat<const T> dgate, mat<const T> logits, const routing<T>& r, const R& router,
                  const living_experts& alive, double balance_weight, double z_weight, Memory& memory) {
    const auto scope = memory.scope();
    const vec<T> dprobability = memory.template take<T>(logits.cols());
    for (index_t n = 0; n < logits.rows(); ++n)
      row(dlogits, dgate, logits, r, router, alive, balance_weight, z_weight, n, dprobability);
  }

  /// One row; dprobability (E) is scratch.
  template <class T, class R> static void row(mat<T> dlogits, mat<const T> dgate, mat<const T> logits,
                                              const routing<T>& r, const R& router, const living_experts& alive,
                                              double balance_weight, double z_weight, index_t n, vec<T> dprobability) {
    using std::exp;
    const int E = int(logits.cols());
    const T rows(real_t<T>(logits.rows()));
    const expert_set& living = alive.of(n);
    const T balance = T(real_t<T>(balance_weight)) * T(real_t<T>(living.size())) / rows;
    for (int e = 0; e < E; ++e) dprobability[e] = balance * r.load[e], dlogits(n, e) = T{};
    const routed_token<T> token{
        logits.row(n).data(), r.probability.row(n).data(), r.chosen.row(n).data(), r.gate.row(n).data(), E, &living};
    router.template backward<T>(token, dgate.row(n).data(), dprobability.data(), dlogits.row(n).data());
    if (z_weight == 0) return;
    const T lse = log_sum_exp_of(logits.row(n), living), factor = T(real_t<T>(2 * z_weight)) * lse / rows;
    for (int e = 0; e < E; ++e)
      if (living.contains(e)) dlogits(n, e) += factor * exp(logits(n, e) - lse);
  }

  template <class T> static T log_sum_exp_of(vec<const T> logits, const expert_set& living) {
    return log_sum_exp(logits.data(), logits.size(), [&](index_t e) { return living.contains(int(e)); });
  }
};

template <> struct kernel<balance_loss_t, on_reference> {
  template <class B, class T> static void run(B&, balance_losses<T>& losses, const routing<T>& r, mat<const T> logits,
                                              const living_experts& alive) {
    const T rows(real_t<T>(logits.rows()));
    for (index_t n = 0; n < logits.rows(); ++n) {
      const expert_set& living = alive.of(n);
      T sum{};
      for (index_t e = 0; e < logits.cols(); ++e) sum += r.load[e] * r.probability(n, e);
      losses.balance += sum * T(real_t<T>(living.size())) / rows;
      const T lse = kernel<route_backward_t, on_reference>::log_sum_exp_of(logits.row(n), living);
      losses.z += lse * lse / rows;
    }
  }
};

}  // namespace moeskip
