// Dense block: y = x + down (silu(gate h) · up h),  h = norm(x); V's mlp may say otherwise.
//   g V::mlp::gates
#pragma once

#include "moeskip/memory/tape.hpp"
#include "moeskip/ops/norm_linear.hpp"
#include "moeskip/ops/swiglu.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip {

/// How the weights of a dense block are called: the layer's own, or the one behind a MoE block.
struct dense_names {
  const char *norm = "post_attention_layernorm", *mlp = "mlp";
};
inline constexpr dense_names behind_moe{"pre_extra_mlp_layernorm", "extra_mlp"};

template <class V, class W> struct dense_weights {
  vec<W> norm;            // (D)
  mat<W> gate, up, down;  // (gF, D) (F, D) (D, F)

  mat<W> gate_up() const { return {gate.data(), gate.rows() + up.rows(), gate.cols()}; }  // they are joined

  template <class Tensor> void tensors(const sizes& s, Tensor&& tensor, const dense_names& names = {}) {
    const std::string mlp = names.mlp;
    tensor({text(names.norm, ".weight"), initial::ones, false, tensor_kind::norm}, norm, s.dim);
    tensor({mlp + ".gate_proj.weight"}, gate, V::mlp::gates * s.dense_width(), s.dim);
    tensor({mlp + ".up_proj.weight", initial::fan_in, true}, up, s.dense_width(), s.dim);
    tensor({mlp + ".down_proj.weight", initial::residual}, down, s.dim, s.dense_width());
  }
};

template <class V, class B> struct dense {
  using T = scalar_t<B>;
  const sizes& size;
  const dense_weights<V, const weight_t<B>>& w;

  struct saved {
    mat<T> x, h, gate_up, act;  // (N, D) (N, D) (N, (g + 1)F) (N, F)
  };

  template <class Tape> mat<T> forward(B& b, mat<T> x, Tape& tape) const {
    static_assert(!Tape::records || V::mlp::trains,
                  "moeskip: V::mlp has no backward: this model can be run, not trained");
    tape.enter(b, stage::dense);
    arena& memory = tape.memory();
    const index_t N = x.rows(), F = size.dense_width();
    mat<T> h = memory.take<T>(N, size.dim), act = memory.take<T>(N, F);
    mat<T> gate_up = memory.take<T>(N, (V::mlp::gates + 1) * F);
    norm_linear(b, gate_up, h, x, w.norm, w.gate_up(), size.norm_eps);
    if constexpr (requires { V::mlp::activate(b, act, gate_up); }) V::mlp::activate(b, act, gate_up);
    else swiglu(b, act, gate_up);
    mat<T> y = tape.successor(x);
    linear(b, y, act, w.down, x);
    tape.save(saved{x, h, gate_up, act});
    return y;
  }

  /// dx (N, D): on entry the gradient of y, on return that of x.
  template <class Tape> void backward(B& b, mat<T> dx, const dense_weights<V, T>& dw, Tape& tape) const {
    arena& memory = tape.memory();
    const saved s = tape.template pop<saved>();
    const auto scope = memory.scope();
    mat<T> dact = memory.take<T>(dx.rows(), s.act.cols()), dh = memory.take<T>(dx.rows(), size.dim);
    linear_backward(b, dact, dw.down, dx, s.act, w.down);
    swiglu_backward(b, s.gate_up, dact, s.gate_up);
    norm_linear_backward(b, dx, dh, dw.norm, dw.gate_up(), s.gate_up, s.x, s.h, w.norm, w.gate_up(), size.norm_eps);
  }
};

}  // namespace moeskip
