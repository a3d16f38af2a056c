// Grouped-query attention with rotary positions: y = x + attend(rope(projection(norm(x) W_qkv))) W_o
// V's projection may add a bias, or normalise queries and keys.
#pragma once

#include "moeskip/memory/tape.hpp"
#include "moeskip/ops/append_attend.hpp"
#include "moeskip/ops/late_product.hpp"
#include "moeskip/ops/norm_linear.hpp"
#include "moeskip/ops/vector.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip {

template <class V, class W> struct attention_weights {
  vec<W> norm;        // (D)
  mat<W> q, k, v, o;  // (H·d, D) (G·d, D) (G·d, D) (D, H·d)
  typename V::projection::template weights<W> projected;

  mat<W> qkv() const { return {q.data(), q.rows() + k.rows() + v.rows(), q.cols()}; }  // they are joined
  mat<W> kv() const { return {k.data(), k.rows() + v.rows(), k.cols()}; }

  template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
    const int d = s.head_size();
    tensor({"input_layernorm.weight", initial::ones, false, tensor_kind::norm}, norm, s.dim);
    tensor({"self_attn.q_proj.weight"}, q, s.heads * d, s.dim);
    tensor({"self_attn.k_proj.weight", initial::fan_in, true}, k, s.kv_groups() * d, s.dim);
    tensor({"self_attn.v_proj.weight", initial::fan_in, true}, v, s.kv_groups() * d, s.dim);
    tensor({"self_attn.o_proj.weight", initial::residual}, o, s.dim, s.heads * d);
    projected.tensors(s, tensor);
  }
};

template <class V, class B> struct attention {
  using T = scalar_t<B>;
  const sizes& size;
  const attention_weights<V, const weight_t<B>>& w;

  struct saved {
    mat<T> x, h, q, o;  // (N, D) (N, D) (N, H·d) (N, H·d)
    mat<T> input;       // (N, (H + 2G)·d) of the projection, where it asks for it
    kv_layer<T> kv;
    token_rows rows;
  };

  /// x (N, D); keys and values of the rows are appended to kv. y is left to whoever goes on to make.
  template <class Tape>
  late_product<T, weight_t<B>> forward(B& b, mat<T> x, kv_layer<T> kv, const token_rows& rows, Tape& tape) const {
    tape.enter(b, stage::attention);
    arena& memory = tape.memory();
    const attention_shape shape = size.attention();
    const index_t N = x.rows();
    mat<T> h = memory.take<T>(N, size.dim), o = memory.take<T>(N, shape.q_dim()), q, input;
    if constexpr (Tape::records) q = memory.take<T>(N, shape.q_dim());
    if constexpr (Tape::records && V::projection::keeps_input)
      input = memory.take<T>(N, shape.q_dim() + 2 * shape.kv_dim());
    {
      const auto scope = memory.scope();
      mat<T> qkv = memory.take<T>(N, shape.q_dim() + 2 * shape.kv_dim());
      norm_linear(b, qkv, h, x, w.norm, w.qkv(), size.norm_eps);
      if constexpr (Tape::records) {
        if (input.data()) copy_into(b, flat(input), flat(qkv));
        w.projected.forward(b, qkv, size);
        rope_append(b, q, kv, qkv, rows, shape);
      } else {
        append_attend(b, o, qkv, kv, rows, left_to_adjust(b, qkv), shape, memory);
      }
    }
    if constexpr (Tape::records) attend(b, o, q, kv, rows, shape, memory);
    const mat<T> y = tape.successor(x);
    tape.save(saved{x, h, q, o, input, kv, rows});
    return {y, x, o, w.o};
  }

  /// dx (N, D): on entry the gradient of y, on return that of x.
  template <class Tape> void backward(B& b, mat<T> dx, const attention_weights<V, T>& dw, Tape& tape) const {
    arena& memory = tape.memory();
    const saved s = tape.template pop<saved>();
    const auto scope = memory.scope();
    const attention_shape shape = size.attention();
    const index_t N = dx.rows();
    mat<T> d_o = memory.take<T>(N, shape.q_dim()), dq = memory.take<T>(N, shape.q_dim());
    mat<T> dqkv = memory.take<T>(N, shape.q_dim() + 2 * shape.kv_dim()), dh = memory.take<T>(N, size.dim);
    const index_t S = s.kv.keys.extent(0), C = s.kv.keys.extent(1);
    const kv_layer<T> dkv{memory.take<T>(S, C, shape.kv_dim()), memory.take<T>(S, C, shape.kv_dim())};
    fill_with(b, flat(dkv.keys), 0), fill_with(b, flat(dkv.values), 0);
    linear_backward(b, d_o, dw.o, dx, s.o, w.o);
    attend_backward(b, dq, dkv, d_o, s.q, s.kv, s.rows, shape, memory);
    rope_append_backward(b, dqkv, dq, dkv, s.rows, shape);
    w.projected.backward(b, dqkv, dw.projected, s.input, size);
    norm_linear_backward(b, dx, dh, dw.norm, dw.qkv(), dqkv, s.x, s.h, w.norm, w.qkv(), size.norm_eps);
  }

  /// Only keys and values of x (N, D), for a layer that an early exit skips (CALM's state propagation,
  /// arXiv:2207.07061, section 4.1).
  void append_keys_values(B& b, mat<const T> x, kv_layer<T> kv, const token_rows& rows, arena& memory) const {
    const auto scope = memory.scope();
    const attention_shape shape = size.attention();
    mat<T> h = memory.take<T>(x.rows(), size.dim), projected = memory.take<T>(x.rows(), 2 * shape.kv_dim());
    norm_linear(b, projected, h, x, w.norm, w.kv(), size.norm_eps);
    w.projected.forward(b, projected, size);
    rope_append(b, {}, kv, projected, rows, shape);
  }

 private:
  template <int Rank> static vec<T> flat(const view<T, Rank>& v) { return {v.data(), v.size()}; }

  /// What is still to be done to qkv: all that the projection describes, or nothing where it only knows how to do it.
  qkv_adjustment<weight_t<B>> left_to_adjust(B& b, mat<T> qkv) const {
    if constexpr (requires { w.projected.adjustment(size); }) return w.projected.adjustment(size);
    else return w.projected.forward(b, qkv, size), qkv_adjustment<weight_t<B>>{};
  }
};

}  // namespace moeskip
