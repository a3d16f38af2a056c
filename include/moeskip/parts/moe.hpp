// Mixture-of-Experts block: y = x + Σ_k gate_k · expert_{chosen_k}(h),  h = norm(x),  scores = h W_rᵀ
// V supplies the router and the expert dropout. While training, vanished experts are masked before the router's
// softmax, so what they would have got goes to the survivors.
#pragma once

#include <algorithm>

#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/memory/tape.hpp"
#include "moeskip/ops/experts.hpp"
#include "moeskip/ops/norm_linear.hpp"
#include "moeskip/ops/route.hpp"
#include "moeskip/ops/vector.hpp"
#include "moeskip/parts/expert_masks.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip {

template <class W> struct moe_weights {
  vec<W> norm;                // (D)
  mat<W> router;              // (E, D)
  expert_weights<W> experts;  // (E, 2F, D) (E, D, F)

  template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
    tensor({"post_attention_layernorm.weight", initial::ones}, norm, s.dim);
    tensor({"mlp.gate.weight"}, router, s.experts, s.dim);
    for (int e = 0; e < s.experts; ++e) {
      mat<W> gate, up;  // (F, D)
      tensor({text("mlp.experts.", e, ".gate_proj.weight"), initial::fan_in, e > 0}, gate, s.ffn, s.dim);
      tensor({text("mlp.experts.", e, ".up_proj.weight"), initial::fan_in, true}, up, s.ffn, s.dim);
      if (e == 0) experts.gate_up = {gate.data(), s.experts, 2 * s.ffn, s.dim};
    }
    for (int e = 0; e < s.experts; ++e) {
      mat<W> down;  // (D, F)
      tensor({text("mlp.experts.", e, ".down_proj.weight"), initial::residual, e > 0}, down, s.dim, s.ffn);
      if (e == 0) experts.down = {down.data(), s.experts, s.dim, s.ffn};
    }
  }
};

/// The router's weights of the auxiliary losses; 0 where it names none.
template <class R> constexpr double balance_weight(const R& router) {
  if constexpr (requires { router.balance_loss; }) return router.balance_loss;
  else return 0;
}
template <class R> constexpr double z_weight(const R& router) {
  if constexpr (requires { router.z_loss; }) return router.z_loss;
  else return 0;
}

template <class V, class B> struct moe {
  using T = scalar_t<B>;
  static constexpr int K = V::router::experts_per_token;
  const sizes& size;
  const moe_weights<const weight_t<B>>& w;
  const typename V::router& router;
  const typename V::expert_dropout& dropout;

  struct saved {
    mat<T> x, h, logits, gate_up;  // (N, D) (N, D) (N, E) (M, 2F)
    routing<T> chosen, weighted;   // with the router's gates, and with the weights that outputs had
    dispatch plan;
    living_experts alive;
    mask_key key;
    token_rows rows;
  };

  template <class Tape> mat<T> forward(B& b, int layer, mat<T> x, const token_rows& rows, Tape& tape) const {
    arena& memory = tape.memory();
    const index_t N = x.rows(), E = size.experts;
    mat<T> h = memory.take<T>(N, size.dim), logits = memory.take<T>(N, E);
    norm_linear(b, logits, h, x, w.norm, w.router, size.norm_eps);

    const living_experts alive = survivors(layer, rows, tape);
    const routing<T> r{memory.take<T>(N, E), memory.take<int>(N, K), memory.take<T>(N, K), memory.take<T>(E)};
    route(b, r, logits, router, alive);
    const dispatch plan = plan_dispatch(r.chosen, size.experts, capacity<Tape>(N), memory);

    mat<T> gate_up = memory.take<T>(plan.size(), 2 * size.ffn), y = tape.successor(x);
    if constexpr (!Tape::records) {
      experts(b, y, gate_up, x, h, r, plan, w.experts, memory);
    } else {
      const mask_key key = key_of(layer, tape);
      const routing<T> weighted = weights_of(r, key, rows, memory);
      experts(b, y, gate_up, x, h, weighted, plan, w.experts, memory, draw_activations(dropout, key, rows));
      const balance_losses<T> losses = balance_loss(b, r, logits, alive);
      tape.balance += losses.balance, tape.z += losses.z;
      tape.save(saved{x, h, logits, gate_up, r, weighted, plan, alive, key, rows});
    }
    return y;
  }

  /// dx (N, D): on entry the gradient of y, on return that of x. auxiliary: weight of this layer's balance and z losses
  /// in the total, relative to the router's own weights.
  template <class Tape> void backward(B& b, mat<T> dx, const moe_weights<T>& dw, Tape& tape, double auxiliary) const {
    arena& memory = tape.memory();
    const saved s = tape.template pop<saved>();
    const auto scope = memory.scope();
    const index_t N = dx.rows();
    mat<T> dh = memory.take<T>(N, size.dim), dh_router = memory.take<T>(N, size.dim);
    mat<T> dgate = memory.take<T>(N, K), dlogits = memory.take<T>(N, size.experts);
    experts_backward(b, dh, dgate, dw.experts, dx, s.gate_up, s.h, s.weighted, s.plan, w.experts, memory,
                     draw_activations(dropout, s.key, s.rows));
    mask_outputs(dropout, s.key, s.rows, s.chosen.chosen, dgate);
    route_backward(b, dlogits, dgate, s.logits, s.chosen, router, s.alive, auxiliary * balance_weight(router),
                   auxiliary * z_weight(router), memory);
    linear_backward(b, dh_router, dw.router, dlogits, s.h, w.router);
    accumulate(b, flat(dh), flat(dh_router));
    rms_norm_backward(b, dx, dw.norm, dh, s.x, w.norm, size.norm_eps);
  }

 private:
  static vec<T> flat(mat<T> m) { return {m.data(), m.size()}; }

  template <class Tape> living_experts survivors(int layer, const token_rows& rows, Tape& tape) const {
    if constexpr (Tape::records)
      return draw_survivors(dropout, key_of(layer, tape), rows, size.experts, K, tape.memory());
    vec<expert_set> set = tape.memory().template take<expert_set>(1);
    set[0] = expert_set::first(size.experts);
    return {set};
  }

  template <class Tape> mask_key key_of(int layer, const Tape& tape) const {
    return {tape.from, tape.step, layer, size.layers, tape.progress};
  }

  /// The routing with the weights that the experts' outputs have: the gates, unless expert dropout masks outputs. The
  /// router's backward needs the gates themselves.
  routing<T> weights_of(routing<T> r, const mask_key& key, const token_rows& rows, arena& memory) const {
    if constexpr (detail::masks_outputs<typename V::expert_dropout>) {
      const mat<T> weight = memory.take<T>(r.gate.rows(), r.gate.cols());
      std::copy(r.gate.begin(), r.gate.end(), weight.begin());
      mask_outputs(dropout, key, rows, r.chosen, weight);
      r.gate = weight;
    }
    return r;
  }

  /// Assignments per expert; 0 is no limit. Only training drops.
  template <class Tape> index_t capacity(index_t rows) const {
    if constexpr (Tape::records && HasCapacity<typename V::router>) return router.capacity(rows, size.experts);
    else return 0 * rows;
  }
};

}  // namespace moeskip
