// Gradients of the experts: products grouped by expert, and phases between them.
#pragma once

#include "moeskip/backend/cuda/experts.hpp"

namespace moeskip {

namespace phase {

/// From back (M, F) = downᵀ dy: the gate of an assignment has gradient back · act, and gate_up becomes its own. A warp
/// each.
struct expert_act_backward {
  static constexpr const char* name = "expert_act_backward";
  mat<float> gate_up;
  vec<float> dgate;  // (N·K)
  mat<const float> back;
  dispatch d;
  vec<const float> gate;
  activation_mask mask;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t m = b.block() * b.warps() + b.warp(), F = back.cols();
    if (m >= d.first[d.experts()]) return;
    const float g = gate[d.choice[m]];
    float sum = 0;
    for (index_t f = b.lane(); f < F; f += 32) {
      const float a = gate_up(m, f), up = gate_up(m, F + f);
      const float dact = mask.masks() ? back(m, f) * mask.factor(d.row[m], d.expert[m], f) : back(m, f);
      sum += dact * silu(a) * up;
      gate_up(m, f) = g * dact * up * silu_derivative(a);
      gate_up(m, F + f) = g * dact * silu(a);
    }
    sum = b.warp_sum(sum);
    if (b.lane() == 0) dgate[d.choice[m]] = sum;
  }
};

/// Where an assignment was dropped, its gate has no gradient.
struct dropped_gates {
  static constexpr const char* name = "dropped_gates";
  vec<float> dgate;
  vec<const int> assignment;
  MOESKIP_HD void operator()(index_t c) const {
    if (assignment[c] < 0) dgate[c] = 0;
  }
};

}  // namespace phase

template <> struct kernel<experts_backward_t, on_cuda> {
  template <class B, class W, class Memory>
  static void run(B&, mat<float> dh, mat<float> dgate, const expert_weights<float>& dw, mat<const float> dy,
                  mat<float> gate_up, mat<const float> h, const routing<float>& r, const dispatch& d,
                  const expert_weights<const W>& w, Memory&, const activation_mask& masked) {
    using call = detail::device_call<experts_backward_t, B>;
    using phase::assigned;
    call::seen(dh), call::seen(dgate), call::seen(dw), call::seen(dy), call::seen(gate_up), call::seen(h);
    call::seen(r.gate), call::seen(w);
    call::seen(d);
    const auto scope = call::scratch().scope();
    const index_t D = h.cols(), F = w.down.cols(), M = d.size(), E = d.experts();
    const vec<const float> gate(r.gate.data(), r.gate.size());
    const vec<float> dgates(dgate.data(), dgate.size());
    const activation_mask mask = call::with_listed_rows(masked);
    const mat<float> back = call::scratch().template take<float>(M, F);
    const mat<float> act = call::scratch().template take<float>(M, F);
    const mat<float> dh_each = call::scratch().template take<float>(M, D);
    // What varies by expert is the rows of c in `by_row`, the depth in `by_depth`: one tile a row block and expert.
    const auto by_row = [&](phase::product_call<W> p) {
      p.first = d.first.data(), p.groups = int(E), p.by = assigned::rows;
      detail::multiply_tiles<call>(p, detail::row_tiles(d));
    };
    const auto by_depth = [&](phase::product_call<float> p) {
      p.first = d.first.data(), p.groups = int(E), p.by = assigned::depth, p.base = p.c;
      p.c_group_step = p.rows * p.cols;
      detail::multiply_tiles<call>(p, [&](index_t tile) { return E * detail::ceiling(p.rows, tile); });
    };
    by_row({.a = {dy.data(), D, 1, 0, assigned::rows, d.row.data()},
            .b = {w.down.together().data(), 1, F, D * F},
            .c = back.data(),
            .cols = F,
            .depth = D});
    call::each(act.size(), phase::expert_act{act, gate_up, d, gate, mask});
    by_depth({.a = {dy.data(), 1, D, 0, assigned::depth, d.row.data()},
              .b = {act.data(), 1, F, 0, assigned::depth},
              .c = dw.down.together().data(),
              .rows = D,
              .cols = F});
    call::launch(detail::warp_each(M), phase::expert_act_backward{gate_up, dgates, back, d, gate, mask});
    call::each(dgates.size(), phase::dropped_gates{dgates, d.assignment});
    by_depth({.a = {gate_up.data(), 1, 2 * F, 0, assigned::depth},
              .b = {h.data(), 1, D, 0, assigned::depth, d.row.data()},
              .c = dw.gate_up.together().data(),
              .rows = 2 * F,
              .cols = D});
    by_row({.a = {gate_up.data(), 2 * F, 1, 0, assigned::rows},
            .b = {w.gate_up.together().data(), 1, D, 2 * F * D},
            .c = dh_each.data(),
            .cols = D,
            .depth = 2 * F});
    call::each(dh.size(), phase::add_experts{dh, {}, dh_each, d, {}, int(r.gate.cols())});
  }
};

}  // namespace moeskip
