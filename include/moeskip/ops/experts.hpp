// The chosen experts of every row, weighted and added to the residual stream.
//   y_n = residual_n + Σ_k gate_n,k · down_e (silu(gate_e h_n) · up_e h_n),   e = chosen_n,k, in order of expert id
//   h, y, residual (N, D)   gate_up (M, 2F): kept for backward
// While training, an activation_mask may multiply act = silu(…) · up before down: dropout inside the experts.
// Backward, with o = down act and do = dy:   dgate = dy · o = (downᵀ dy) · act, so the outputs o need not be kept.
#pragma once

#include <algorithm>

#include "moeskip/base/math.hpp"
#include "moeskip/ops/activation_mask.hpp"
#include "moeskip/ops/dispatch.hpp"

namespace moeskip {

/// Throws shape_error unless w are E experts of width D, with two rows of gate_up for each column of down.
template <class W> void expect_experts(std::string_view op, const expert_weights<W>& w, index_t experts, index_t dim) {
  expect_shape(op, "w.down", w.down, experts, dim, w.down.cols());
  expect_shape(op, "w.gate_up", w.gate_up, experts, 2 * w.down.cols(), dim);
}

/// On cpu, calls of 1 to 16 rows give every row the same bits whatever the other rows are. Throws shape_error.
struct experts_t {
  static constexpr const char* name = "experts";
  template <class B, class Memory>
  void operator()(B& b, mat<scalar_t<B>> y, mat<scalar_t<B>> gate_up, mat<const scalar_t<B>> residual,
                  mat<const scalar_t<B>> h, const routing<scalar_t<B>>& r, const dispatch& d,
                  const expert_weights<const weight_t<B>>& w, Memory& memory, const activation_mask& mask = {}) const {
    expect_shape(name, "y", y, h.rows(), h.cols());
    expect_shape(name, "residual", residual, h.rows(), h.cols());
    expect_shape(name, "gate", r.gate, h.rows(), r.gate.cols());
    expect_shape(name, "gate_up", gate_up, d.size(), w.gate_up.rows());
    expect_experts(name, w, d.experts(), h.cols());
    if (mask.masks()) expect_shape(name, "mask.rows.position", mask.rows.position, h.rows());
    run_kernel<experts_t>(b, y, gate_up, residual, h, r, d, w, memory, mask);
  }
};
inline constexpr experts_t experts{};

/// dh(N,D) = …, dgate(N,K) = … (0 where dropped), dw += …. The mask is that of forward. gate_up (M, 2F) is overwritten
/// with its own gradient. Throws shape_error.
struct experts_backward_t {
  static constexpr const char* name = "experts_backward";
  template <class B, class Memory>
  void operator()(B& b, mat<scalar_t<B>> dh, mat<scalar_t<B>> dgate, const expert_weights<scalar_t<B>>& dw,
                  mat<const scalar_t<B>> dy, mat<scalar_t<B>> gate_up, mat<const scalar_t<B>> h,
                  const routing<scalar_t<B>>& r, const dispatch& d, const expert_weights<const weight_t<B>>& w,
                  Memory& memory, const activation_mask& mask = {}) const {
    expect_shape(name, "dh", dh, h.rows(), h.cols());
    expect_shape(name, "dy", dy, h.rows(), h.cols());
    expect_shape(name, "gate", r.gate, h.rows(), r.gate.cols());
    expect_shape(name, "dgate", dgate, h.rows(), r.gate.cols());
    expect_shape(name, "gate_up", gate_up, d.size(), w.gate_up.rows());
    expect_experts(name, w, d.experts(), h.cols());
    expect_shape(name, "dw.gate_up", dw.gate_up, d.experts(), w.gate_up.rows(), h.cols());
    expect_shape(name, "dw.down", dw.down, d.experts(), h.cols(), w.down.cols());
    if (mask.masks()) expect_shape(name, "mask.rows.position", mask.rows.position, h.rows());
    run_kernel<experts_backward_t>(b, dh, dgate, dw, dy, gate_up, h, r, d, w, memory, mask);
  }
};
inline constexpr experts_backward_t experts_backward{};

template <> struct kernel<experts_t, on_reference> {
  template <class B, class T, class W, class Memory>
  static void run(B&, mat<T> y, mat<T> gate_up, mat<const T> residual, mat<const T> h, const routing<T>& r,
                  const dispatch& d, const expert_weights<const W>& w, Memory& memory, const activation_mask& mask) {
    const auto scope = memory.scope();
    const index_t D = h.cols(), F = w.down.cols();
    const vec<T> act = memory.template take<T>(F), factor = memory.template take<T>(F);
    for (index_t i = 0; i < y.size(); ++i) y.data()[i] = residual.data()[i];
    for (int e = 0; e < d.experts(); ++e)
      for (int m = d.first[e]; m < d.first[e + 1]; ++m) {
        const mat<const W> up_rows = w.gate_up.plane(e), down = w.down.plane(e);
        const T gate = r.gate.data()[d.choice[m]];
        for (index_t f = 0; f < 2 * F; ++f) {
          gate_up(m, f) = T{};
          for (index_t i = 0; i < D; ++i) gate_up(m, f) += h(d.row[m], i) * to<T>(up_rows(f, i));
        }
        for (index_t f = 0; f < F; ++f) act[f] = silu(gate_up(m, f)) * gate_up(m, F + f);
        if (mask.masks()) {
          mask.factors(factor.data(), d.row[m], e, 0, F);
          for (index_t f = 0; f < F; ++f) act[f] *= factor[f];
        }
        for (index_t i = 0; i < D; ++i) {
          T out{};
          for (index_t f = 0; f < F; ++f) out += act[f] * to<T>(down(i, f));
          y(d.row[m], i) += gate * out;
        }
      }
  }
};

template <> struct kernel<experts_backward_t, on_reference> {
  template <class B, class T, class W, class Memory>
  static void run(B&, mat<T> dh, mat<T> dgate, const expert_weights<T>& dw, mat<const T> dy, mat<T> gate_up,
                  mat<const T> h, const routing<T>& r, const dispatch& d, const expert_weights<const W>& w,
                  Memory& memory, const activation_mask& mask) {
    const auto scope = memory.scope();
    const vec<T> factor = memory.template take<T>(w.down.cols());  // of each unit
    std::fill(factor.begin(), factor.end(), T(1));
    const index_t D = h.cols(), F = w.down.cols();
    for (T& g : dh) g = T{};
    for (T& g : dgate) g = T{};
    for (int e = 0; e < d.experts(); ++e)
      for (int m = d.first[e]; m < d.first[e + 1]; ++m) {
        const int n = d.row[m];
        const T gate = r.gate.data()[d.choice[m]];
        if (mask.masks()) mask.factors(factor.data(), n, e, 0, F);
        for (index_t f = 0; f < F; ++f) {
          const T a = gate_up(m, f), up = gate_up(m, F + f), act = factor[f] * silu(a) * up;
          T back{};  // (downᵀ dy)_f
          for (index_t i = 0; i < D; ++i) {
            back += dy(n, i) * to<T>(w.down.plane(e)(i, f));
            dw.down.plane(e)(i, f) += gate * dy(n, i) * act;
          }
          dgate.data()[d.choice[m]] += back * act;
          back *= factor[f];
          gate_up(m, f) = gate * back * up * silu_derivative(a);
          gate_up(m, F + f) = gate * back * silu(a);
        }
        for (index_t f = 0; f < 2 * F; ++f)
          for (index_t i = 0; i < D; ++i) {
            dh(n, i) += gate_up(m, f) * to<T>(w.gate_up.plane(e)(f, i));
            dw.gate_up.plane(e)(f, i) += gate_up(m, f) * h(n, i);
          }
      }
  }
};

}  // namespace moeskip
