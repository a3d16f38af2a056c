// What the gates of layer_skip::gate compute, around a layer that is handed in. Keys and values of a token that passed
// by are those of its stream, while training and afterwards: later tokens miss nothing.
#pragma once

#include "moeskip/memory/tape.hpp"
#include "moeskip/ops/layer_gates.hpp"
#include "moeskip/ops/norm_linear.hpp"
#include "moeskip/ops/select_rows.hpp"
#include "moeskip/ops/vector.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip {

template <class W> struct gate_weights {
  vec<W> norm;  // (D)
  mat<W> row;   // (1, D)

  template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
    tensor({"skip_gate.norm.weight", initial::ones, false, tensor_kind::norm}, norm, s.dim);
    tensor({"skip_gate.weight", initial::zeros}, row, 1, s.dim);
  }
};

/// Rows `selected` (M) of a call's rows.
inline token_rows select_rows(const token_rows& rows, vec<const int> selected, arena& memory) {
  const index_t M = selected.size();
  const vec<int> slot = memory.take<int>(M), position = memory.take<int>(M);
  const vec<int> token = memory.take<int>(rows.token.size() ? M : 0);
  for (index_t m = 0; m < M; ++m) slot[m] = rows.slot[selected[m]], position[m] = rows.position[selected[m]];
  for (index_t m = 0; m < token.size(); ++m) token[m] = rows.token[selected[m]];
  return {slot, position, token};
}

template <class P, class B> struct layer_gate {
  using T = scalar_t<B>;
  const sizes& size;
  const gate_weights<const weight_t<B>>& w;
  const P& policy;

  struct saved {
    mat<T> x, made, h;  // (N, D): the stream before the layer and after it, normed
    mat<T> logit;       // (N, 1): s without `open`
    vec<T> opened;      // (N): g
  };

  /// layer(x, rows) runs the layer; remember(x, rows) only appends keys and values.
  template <class Tape, class Layer, class Remember>
  mat<T> forward(B& b, int l, mat<T> x, const token_rows& rows, Tape& tape, Layer&& layer, Remember&& remember) const {
    tape.enter(b, stage::layer_gate);
    arena& memory = tape.memory();
    const index_t N = x.rows();
    mat<T> h = memory.take<T>(N, size.dim), logit = memory.take<T>(N, 1);
    auto&& exact = unrounded(b);
    norm_linear(exact, logit, h, x, w.norm, w.row, size.norm_eps);
    if constexpr (Tape::records) {
      const mat<T> made = layer(x, rows);
      const vec<T> opened = memory.take<T>(N);
      open_gates(b, opened, tape.open_gates(), logit, slope(), {tape.from, tape.step, l, rows}), ++tape.gates;
      const mat<T> y = tape.successor(x);
      pass_gates(b, y, x, made, opened);
      tape.save(saved{x, made, h, logit, opened});
      return y;
    } else {
      settle(b);
      arena& lists = memory.of_host();
      const vec<int> running = lists.take<int>(N), passing = lists.take<int>(N);
      index_t run = 0, pass = 0;
      for (index_t n = 0; n < N; ++n)
        (real_part(logit(n, 0)) + real_t<T>(policy.open) > 0 ? running[run++] : passing[pass++]) = int(n);
      if (pass == 0) {
        tape.entered(l, rows);
        return layer(x, rows);
      }
      const auto gathered = [&](vec<const int> list) {
        const mat<T> some = memory.take<T>(list.size(), x.cols());
        gather_rows(b, some, x, list);
        return some;
      };
      // Before the others, which may look back at them.
      const vec<const int> by{passing.data(), pass}, through{running.data(), run};
      const token_rows passed = select_rows(rows, by, lists), ran = select_rows(rows, through, lists);
      remember(gathered(by), passed);
      tape.passed(l, passed);
      if (run == 0) return x;
      tape.entered(l, ran);
      const mat<T> made = layer(gathered(through), ran);
      tape.enter(b, stage::layer_gate);
      scatter_rows(b, x, made, through);
      return x;
    }
  }

  /// dx (N, D): on entry the gradient of y, on return that of x. layer(dx) is the layer's own backward.
  template <class Tape, class Layer>
  void backward(B& b, mat<T> dx, const gate_weights<T>& dw, Tape& tape, Layer&& layer) const {
    arena& memory = tape.memory();
    const saved s = tape.template pop<saved>();
    const auto scope = memory.scope();
    const index_t N = dx.rows();
    const mat<T> past = memory.take<T>(N, dx.cols()), dlogit = memory.take<T>(N, 1), dh = memory.take<T>(N, dx.cols());
    pass_gates_backward(b, dx, past, dlogit, s.x, s.made, s.opened, s.logit, slope(),
                        {tape.open_gates(), tape.gates, policy.keep, policy.pull});
    layer(dx);
    accumulate(b, {dx.data(), dx.size()}, {past.data(), past.size()});
    auto&& exact = unrounded(b);
    norm_linear_backward(exact, dx, dh, dw.norm, dw.row, dlogit, s.x, s.h, w.norm, w.row, size.norm_eps);
  }

 private:
  gate_slope slope() const { return {policy.open, policy.temperature}; }
};

}  // namespace moeskip
