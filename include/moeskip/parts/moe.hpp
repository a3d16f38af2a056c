// Mixture-of-Experts block: y = x + Σ_k gate_k · expert_{chosen_k}(h),  h = norm(x),  scores = h W_rᵀ
// V supplies the router, the expert dropout and the shared expert, which adds its own term. While training, vanished
// experts are masked before the router's softmax, so what they would have got goes to the survivors.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/memory/paging.hpp"
#include "moeskip/memory/tape.hpp"
#include "moeskip/ops/add_load_errors.hpp"
#include "moeskip/ops/dispatch.hpp"
#include "moeskip/ops/experts.hpp"
#include "moeskip/ops/norm_route.hpp"
#include "moeskip/ops/route.hpp"
#include "moeskip/ops/vector.hpp"
#include "moeskip/parts/expert_masks.hpp"
#include "moeskip/parts/router/wrapper.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip {

template <class V, class W> struct moe_weights {
  using router = typename V::router;
  vec<W> norm;                // (D)
  mat<W> router_rows;         // (E · logits_per_expert, D)
  vec<W> selection_bias;      // (E) or empty
  expert_weights<W> experts;  // (E, (g + 1)F, D) (E, D, F)
  typename V::shared_expert::template weights<W> shared;

  template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
    constexpr int gates = V::mlp::gates;
    tensor({"post_attention_layernorm.weight", initial::ones, false, tensor_kind::norm}, norm, s.dim);
    if constexpr (logits_per_expert<router> != 0)
      tensor({"mlp.gate.weight"}, router_rows, s.experts * logits_per_expert<router>, s.dim);
    if constexpr (has_selection_bias<router>)
      tensor({"mlp.gate.e_score_correction_bias", initial::zeros, false, tensor_kind::selection_bias}, selection_bias,
             s.experts);
    // An expert is read by itself: in the block joined to the one before, so that a device finds a cube; else anywhere.
    const auto matrix = [](int e, const char* which, initial start) {
      return tensor_spec{text("mlp.experts.", e, which), start, e > 0, tensor_kind::matrix, true};
    };
    std::vector<W*> gate_ups, downs;  // (E)
    for (int e = 0; e < s.experts; ++e) {
      mat<W> gate, up;  // (gF, D) (F, D)
      tensor(matrix(e, ".gate_proj.weight", initial::fan_in), gate, gates * s.ffn, s.dim);
      tensor({text("mlp.experts.", e, ".up_proj.weight"), initial::fan_in, true}, up, s.ffn, s.dim);
      gate_ups.push_back(gate.data());
    }
    experts.gate_up = {std::move(gate_ups), (gates + 1) * s.ffn, s.dim};
    for (int e = 0; e < s.experts; ++e) {
      mat<W> down;  // (D, F)
      tensor(matrix(e, ".down_proj.weight", initial::residual), down, s.dim, s.ffn);
      downs.push_back(down.data());
    }
    experts.down = {std::move(downs), s.dim, s.ffn};
    shared.tensors(s, tensor);
  }
};

/// Weights of a MoE block's matrices that one token multiplies, on average.
template <class V> constexpr double active_moe_weights(const sizes& s, const typename V::router& policy) {
  const double router_rows = double(s.experts) * logits_per_expert<typename V::router>;
  return s.dim * (router_rows + (V::mlp::gates + 2.0) * s.ffn * router::active_experts(policy)) +
         double(V::shared_expert::active_weights(s));
}

template <class V, class B> struct moe {
  using T = scalar_t<B>;
  using R = typename V::router;
  static constexpr int K = R::experts_per_token;
  static constexpr bool scores = logits_per_expert<R> != 0;
  static_assert(!detail::wraps_router<R> || !ChoosesRows<R>,
                "moeskip: where experts choose tokens, a router made from that one can change nothing");
  const sizes& size;
  const moe_weights<V, const weight_t<B>>& w;
  const R& policy;
  const typename V::expert_dropout& dropout;

  struct saved {
    mat<T> x, h, logits, gate_up;  // (N, D) (N, D) (N, E · logits_per_expert) (M, 2F)
    routing<T> chosen, weighted;   // with the router's gates, and with the weights that outputs had
    dispatch plan;
    routing_call<T> call;
    mask_key key;
  };

  using stream = late_product<T, weight_t<B>>;

  /// in (N, D): made here, where it is due. kv: where a router that follows its predecessor finds the experts of
  /// earlier tokens.
  template <class Tape>
  mat<T> forward(B& b, int layer, const stream& in, const kv_layer<T>& kv, const token_rows& rows, Tape& tape) const {
    static_assert(Tape::records || !ChoosesRows<R>,
                  "moeskip: with router::expert_choice a token's experts depend on the tokens after it: such a model "
                  "can be trained, but it can neither generate nor be evaluated on a text");
    static_assert(!Tape::records || V::mlp::trains,
                  "moeskip: V::mlp has no backward: this model can be run, not trained");
    const mat<T> x = in.y;
    const index_t N = x.rows();
    // Training is bound by other things than by how many phases there are.
    const bool joins = !Tape::records && norm_route.template joins<B, R>(N);
    if (!joins) make_due(b, in);
    tape.enter(b, stage::router);
    arena& memory = tape.memory();
    const index_t limit = Tape::records ? router::capacity_of(policy, N, size.experts)
                                        : router::capacity_at_inference_of(policy, N, size.experts);
    const bool sorts = !one_by_one && !changes_choices(tape);
    const choice made = choose(b, layer, joins ? in : stream{x}, kv, rows, sorts ? limit : norm_route.unsorted, tape);
    const mat<T> h = made.h, logits = made.logits;
    const routing<T>& r = made.r;
    if constexpr (!Tape::records) {
      if (looks_at_choices(tape)) see(b, r, made.call.alive);
      if (changes_choices(tape)) keep_best(r, tape.most_experts());
      if (tape.asks() != ask_ahead::nothing) ask_for(r);
    }
    if constexpr (one_by_one) {
      settle(b);
      const dispatch plan = plan_dispatch(r.chosen, size.experts, limit, memory);
      tape.enter(b, stage::expert);
      mat<T> y = tape.successor(x);
      V::mlp::experts(b, y, x, h, r, plan, w.experts, memory);
      w.shared.forward(b, y, h, size, tape);
      tell(layer, r, rows, tape);
      return y;
    }
    const dispatch plan = sorts ? made.plan : sort_choices(b, r.chosen, size.experts, limit, memory);

    tape.enter(b, stage::expert);
    mat<T> y = tape.successor(x);
    mat<T> gate_up = memory.take<T>(plan.size(), 2 * size.ffn);
    if constexpr (!Tape::records) {
      experts(b, y, gate_up, x, h, r, plan, w.experts, memory);
      w.shared.forward(b, y, h, size, tape);
      tell(layer, r, rows, tape);
    } else {
      const mask_key key = key_of(layer, tape);
      const routing<T> weighted = weights_of(b, r, key, rows, memory);
      experts(b, y, gate_up, x, h, weighted, plan, w.experts, memory, draw_activations(dropout, key, rows));
      w.shared.forward(b, y, h, size, tape);
      balance_loss(b, tape.auxiliary(), r, logits, made.call);
      tape.save(saved{x, h, logits, gate_up, r, weighted, plan, made.call, key});
    }
    return y;
  }

  /// Tells the tape which experts would be chosen if x (N, D) came here as it is, and asks for their weights. A router
  /// that follows the token before notes what it chooses, so it is not asked what it would choose.
  template <class Tape>
  void foresee(B& b, int layer, mat<T> x, const kv_layer<T>& kv, const token_rows& rows, Tape& tape) const {
    if constexpr (!follows_previous<R>) {
      const auto scope = tape.memory().scope();
      const choice made = choose(b, layer, stream{x}, kv, rows, norm_route.unsorted, tape);
      const routing<T>& r = made.r;
      see(b, r, made.call.alive);
      if (changes_choices(tape)) keep_best(r, tape.most_experts());
      if (tape.asks() == ask_ahead::foreseen) ask_for(r);
      tape.foreseen(layer, r, rows);
    }
  }

  /// Throws config_error where the router of some layer that this tape has recorded made choices that are none. All that
  /// the layers asked for is done.
  template <class Tape> static void expect_sound(Tape& tape) {
    if (tape.unsound()[0] == 0) return;
    for (const auto& [r, alive] : tape.late())
      expect_survivors(V::expert_dropout::name, alive, K), expect_choices(r, alive);
    fail("a router's choices were found to be none, and on a second look are sound");
  }

  /// Tells the tape what was chosen, when a call has ended. Throws config_error for choices that are none.
  template <class Tape> void told(int layer, const routing<T>& r, const token_rows& rows, Tape& tape) const {
    const expert_set alive = tape.living(layer, size.experts);
    expect_choices(r, {{&alive, 1}});
    tape.routed(layer, r, rows);
  }

  /// dx (N, D): on entry the gradient of y, on return that of x. auxiliary: weight of this layer's auxiliary losses in
  /// the total, relative to the router's own weights. What is added to dw.selection_bias is not a gradient but how far
  /// each expert's load lies above the mean: what the trainer moves the bias against.
  template <class Tape>
  void backward(B& b, mat<T> dx, const moe_weights<V, T>& dw, Tape& tape, double auxiliary) const {
    arena& memory = tape.memory();
    const saved s = tape.template pop<saved>();
    const auto scope = memory.scope();
    const index_t N = dx.rows();
    mat<T> dh = memory.take<T>(N, size.dim), dh_more = memory.take<T>(N, size.dim);
    mat<T> dgate = memory.take<T>(N, K), dlogits = memory.take<T>(N, s.logits.cols());
    experts_backward(b, dh, dgate, dw.experts, dx, s.gate_up, s.h, s.weighted, s.plan, w.experts, memory,
                     draw_activations(dropout, s.key, s.call.rows));
    if (const output_mask mask = draw_outputs(dropout, s.key, s.call.rows); mask.masks())
      mask_outputs(b, dgate, dgate, s.chosen.chosen, mask);
    if constexpr (scores) {
      const auxiliary_weights weights{auxiliary * router::balance_weight(policy), auxiliary * router::z_weight(policy),
                                      auxiliary * router::change_weight(policy)};
      route_backward(b, dlogits, dgate, s.logits, s.chosen, policy, s.call, weights, memory);
      auto&& exact = unrounded(b);
      linear_backward(exact, dh_more, dw.router_rows, dlogits, s.h, w.router_rows);
      accumulate(b, flat(dh), flat(dh_more));
    }
    if (w.shared.backward(b, dh_more, dx, dw.shared, s.h, size, tape)) accumulate(b, flat(dh), flat(dh_more));
    if constexpr (has_selection_bias<R>) add_load_errors(b, dw.selection_bias, s.chosen.load, s.call.alive);
    rms_norm_backward(b, dx, dw.norm, dh, s.x, w.norm, size.norm_eps);
  }

 private:
  /// Whether the experts are taken one after the other, by the host.
  static constexpr bool one_by_one =
      requires(B & b, mat<T> y, routing<T> r, dispatch d, expert_weights<const weight_t<B>> e, arena& memory) {
    V::mlp::experts(b, y, y, y, r, d, e, memory);
  };

  struct choice {
    mat<T> h, logits;  // (N, D) (N, E · logits_per_expert)
    routing_call<T> call;
    routing<T> r;
    dispatch plan;  // empty where it was not asked for
  };
  template <class Tape> choice choose(B& b, int layer, const stream& in, const kv_layer<T>& kv, const token_rows& rows,
                                      index_t capacity, Tape& tape) const {
    arena& memory = tape.memory();
    arena& lasting = lasting_memory(tape);
    const index_t N = in.y.rows(), E = size.experts;
    const mat<T> h = memory.take<T>(N, size.dim), logits = memory.take<T>(N, E * logits_per_expert<R>);
    const routing_call<T> call = call_of(b, layer, kv, rows, tape);
    const routing<T> r{lasting.take<T>(N, E), lasting.take<int>(N, K), lasting.take<T>(N, K), lasting.take<T>(E)};
    const dispatch plan = norm_route(b, h, logits, r, in, {w.norm, w.router_rows, w.selection_bias}, size.norm_eps,
                                     policy, call, capacity, memory);
    if constexpr (Tape::records && runs_late<B>) {
      // Experts that choose rows have been waited for.
      if constexpr (ChoosesRows<R>) expect_survivors(V::expert_dropout::name, call.alive, K);
      else tape.late().push_back({r, call.alive});
    }
    return {h, logits, call, r, plan};
  }

  template <class Tape> static arena& lasting_memory(Tape& tape) {
    if constexpr (!Tape::records && runs_late<B>) return tape.lasting();
    else return tape.memory();
  }
  /// Whether the host looks at choices as soon as they are made, and not only when the call of layers ends: a backend
  /// that runs late is then waited for.
  template <class Tape> static bool looks_at_choices(const Tape& tape) {
    if constexpr (V::layer_skip::has_gates) return true;
    else return tape.most_experts() < K || tape.asks() != ask_ahead::nothing || tape.foretells();
  }
  /// Whether the host leaves rows fewer experts than they chose.
  template <class Tape> static bool changes_choices(const Tape& tape) {
    if constexpr (Tape::records) return false;
    else return tape.most_experts() < K;
  }
  /// Where choices have not been looked at: there they are, and throws config_error for what is none.
  static void see(B& b, const routing<T>& r, const living_experts& alive) {
    if constexpr (runs_late<B> && !ChoosesRows<R>) settle(b), expect_choices(r, alive);
  }
  template <class Tape> static void tell(int layer, const routing<T>& r, const token_rows& rows, Tape& tape) {
    if constexpr (!runs_late<B>) tape.routed(layer, r, rows);
    else if (looks_at_choices(tape)) tape.routed(layer, r, rows);
    else tape.late().push_back({layer, r});
  }
  static void expect_choices(const routing<T>& r, const living_experts& alive) {
    for (index_t n = 0; n < r.chosen.rows(); ++n) {
      detail::expect_choices(r.chosen.row(n), int(r.probability.cols()), alive.of(n));
      detail::expect_different(r.chosen.row(n));
    }
  }

  /// Has the weights of the chosen experts fetched, where they stand in a file.
  void ask_for(const routing<T>& r) const {
    const auto all_of = [](auto plane) { will_need(plane.data(), std::size_t(plane.size()) * sizeof(*plane.data())); };
    expert_set asked;
    for (const int e : r.chosen)
      if (e >= 0 && !asked.contains(e))
        asked.insert(e), all_of(w.experts.gate_up.plane(e)), all_of(w.experts.down.plane(e));
  }

  static vec<T> flat(mat<T> m) { return {m.data(), m.size()}; }

  template <class Tape> mask_key key_of(int layer, const Tape& tape) const {
    return {tape.from, tape.step, layer, size.layers, tape.progress};
  }

  template <class Tape>
  routing_call<T> call_of(B& b, int layer, const kv_layer<T>& kv, const token_rows& rows, Tape& tape) const {
    routing_call<T> call{.alive = {}, .rows = rows, .past = kv.experts, .layer = layer};
    if constexpr (Tape::records) {
      call.alive = draw_living_experts(b, dropout, key_of(layer, tape), rows, size.experts, K, tape.memory());
      call.unsound = tape.unsound();
      call.training = true, call.from = tape.from, call.step = tape.step, call.progress = tape.progress;
    } else {
      expert_set& alive = tape.alive();  // not in memory that a device may be writing to
      alive = tape.living(layer, size.experts);
      MOESKIP_CHECK(config_error, alive.size() >= K, "layer ", layer,
                    " has fewer living experts than a token visits: ", "expected at least ", K, ", got ", alive.size());
      call.alive = {{&alive, 1}};
    }
    return call;
  }

  /// Leaves each row the `most` experts with the largest gates, with all that its gates add up to.
  static void keep_best(const routing<T>& r, int most) {
    for (index_t n = 0; n < r.chosen.rows(); ++n) {
      T all{}, kept{};
      for (int k = 0; k < K; ++k) all += r.gate(n, k);
      for (int k = 0; k < K; ++k) {  // a router may choose in another order
        int best = k;
        for (int j = k + 1; j < K; ++j)
          if (real_part(r.gate(n, j)) > real_part(r.gate(n, best))) best = j;
        std::swap(r.gate(n, k), r.gate(n, best)), std::swap(r.chosen(n, k), r.chosen(n, best));
        if (k < most) kept += r.gate(n, k);
        else r.chosen(n, k) = -1, r.gate(n, k) = T{};
      }
      if (kept == T{}) continue;
      for (int k = 0; k < most; ++k) r.gate(n, k) = r.gate(n, k) * all / kept;
    }
  }

  /// The routing with the weights that the experts' outputs have: the gates, unless expert dropout masks outputs. The
  /// router's backward needs the gates themselves.
  routing<T> weights_of(B& b, routing<T> r, const mask_key& key, const token_rows& rows, arena& memory) const {
    if (const output_mask mask = draw_outputs(dropout, key, rows); mask.masks()) {
      const mat<T> weight = memory.take<T>(r.gate.rows(), r.gate.cols());
      mask_outputs(b, weight, r.gate, r.chosen, mask);
      r.gate = weight;
    }
    return r;
  }
};

}  // namespace moeskip
