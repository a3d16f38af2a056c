// A shared expert: a SwiGLU block that every token visits, beside the experts that the router chooses.
//   always   y += down (silu(gate h) · up h)                                          DeepSeekMoE, arXiv:2401.06066
//   gated    the same times sigmoid(w h), a number per token                          Qwen2-MoE, arXiv:2407.10671
//   h (N, D)   F hidden width, sizes.shared_ffn
#pragma once

#include <string_view>

#include "moeskip/memory/tape.hpp"
#include "moeskip/ops/gate_rows.hpp"
#include "moeskip/ops/linear.hpp"
#include "moeskip/ops/swiglu.hpp"
#include "moeskip/ops/vector.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip::shared_expert {

template <bool Gated> struct swiglu_block {
  static constexpr std::string_view name = Gated ? "gated" : "always";
  /// Weights that one token multiplies.
  static constexpr index_t active_weights(const sizes& s) {
    return index_t(s.dim) * (3 * index_t(s.shared_width()) + (Gated ? 1 : 0));
  }
  /// Scalars that backward needs of one token: struct saved.
  static constexpr index_t kept_activations(const sizes& s) {
    return 3 * index_t(s.shared_width()) + (Gated ? s.shared_width() + 1 : 0);
  }

  template <class W> struct weights {
    mat<W> gate, up, down;  // (F, D) (F, D) (D, F)
    mat<W> token_gate;      // (1, D) where Gated

    mat<W> gate_up() const { return {gate.data(), gate.rows() + up.rows(), gate.cols()}; }  // they are joined

    template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
      const int F = s.shared_width();
      tensor({"mlp.shared_expert.gate_proj.weight"}, gate, F, s.dim);
      tensor({"mlp.shared_expert.up_proj.weight", initial::fan_in, true}, up, F, s.dim);
      tensor({"mlp.shared_expert.down_proj.weight", initial::residual}, down, s.dim, F);
      if constexpr (Gated) tensor({"mlp.shared_expert_gate.weight"}, token_gate, 1, s.dim);
    }

    template <class T> struct saved {
      mat<T> gate_up, act, gated, logit;  // (N, 2F) (N, F) (N, F) (N, 1)
    };

    /// y (N, D) += the expert's output.
    template <class B, class Tape>
    void forward(B& b, mat<scalar_t<B>> y, mat<const scalar_t<B>> h, const sizes& s, Tape& tape) const {
      using T = scalar_t<B>;
      arena& memory = tape.memory();
      const index_t N = h.rows(), F = s.shared_width();
      saved<T> k{memory.take<T>(N, 2 * F), memory.take<T>(N, F), {}, {}};
      linear(b, k.gate_up, h, gate_up());
      swiglu(b, k.act, k.gate_up);
      if constexpr (Gated) {
        k.gated = memory.take<T>(N, F), k.logit = memory.take<T>(N, 1);
        linear(b, k.logit, h, token_gate);
        gate_rows(b, k.gated, k.act, k.logit);
      }
      linear(b, y, Gated ? k.gated : k.act, down, y);
      tape.save(k);
    }

    /// dh (N, D) = the gradient of h, from dy (N, D); dw += …. Returns whether there is one.
    template <class B, class Tape> bool backward(B& b, mat<scalar_t<B>> dh, mat<const scalar_t<B>> dy,
                                                 const weights<scalar_t<B>>& dw, mat<const scalar_t<B>> h,
                                                 const sizes& s, Tape& tape) const {
      using T = scalar_t<B>;
      arena& memory = tape.memory();
      const saved<T> k = tape.template pop<saved<T>>();
      const auto scope = memory.scope();
      mat<T> dact = memory.take<T>(h.rows(), s.shared_width());
      linear_backward(b, dact, dw.down, dy, Gated ? k.gated : k.act, down);
      mat<T> dlogit, dh_gate;
      if constexpr (Gated) {
        dlogit = memory.take<T>(h.rows(), 1), dh_gate = memory.take<T>(h.rows(), h.cols());
        gate_rows_backward(b, dact, dlogit, dact, k.act, k.logit);
      }
      swiglu_backward(b, k.gate_up, dact, k.gate_up);
      linear_backward(b, dh, dw.gate_up(), k.gate_up, h, gate_up());
      if constexpr (Gated) {
        linear_backward(b, dh_gate, dw.token_gate, dlogit, h, token_gate);
        accumulate(b, {dh.data(), dh.size()}, {dh_gate.data(), dh_gate.size()});
      }
      return true;
    }
  };
};

using always = swiglu_block<false>;
using gated = swiglu_block<true>;

}  // namespace moeskip::shared_expert
