// The chosen experts of every row. Up to 16 rows a warp makes one unit of one expert for all rows that chose it, and
// then one output of one row; more rows go through the product grouped by expert. Either way a row's experts are added by
// one thread in the order of their ids: no atomics, the same bits every time.
#pragma once

#include "moeskip/backend/cuda/dispatch.hpp"
#include "moeskip/backend/cuda/linear.hpp"
#include "moeskip/ops/experts.hpp"

namespace moeskip {

namespace phase {

/// Rows of assignments.
struct assigned_rows {
  static constexpr int together = plain_rows::together;
  mat<const float> h;
  const int* row;  // of each assignment from the first of these on
  MOESKIP_HD void load(float (&out)[pack], int t, index_t i) const { load_pack(out, &h(row[t], 0), i, h.cols()); }
};

/// gate_up (M, 2F) and act (M, F) of few rows: a warp an expert and unit, whose gate and up it makes.
template <class W> struct expert_units {
  static constexpr const char* name = "expert_units";
  mat<float> act, gate_up;
  mat<const float> h;
  cube<const W> w;  // (E, 2F, D)
  dispatch d;
  activation_mask mask;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t item = b.block() * b.warps() + b.warp(), F = act.cols();
    if (item >= d.visited.size() * F) return;
    const int e = d.visited[item / F];
    if (e < 0) return;
    const index_t f = item % F;
    const W* const gate_and_up[2] = {w.plane(e).row(f).data(), w.plane(e).row(F + f).data()};
    const auto from = [&](index_t m) { return assigned_rows{h, &d.row[m]}; };
    products_of_rows(b, gate_and_up, int(w.cols()), d.first[e], d.first[e + 1], from,
                     [&](index_t m, const float(&made)[2]) {
                       const float g = made[0], u = made[1];
                       gate_up(m, f) = g, gate_up(m, F + f) = u;
                       act(m, f) = silu(g) * u * (mask.masks() ? mask.factor(d.row[m], e, f) : 1.f);
                     });
  }
};

/// act (M, F) = silu(gate) · up, masked while training, and times the row's gate for the expert where there is one.
struct expert_act {
  static constexpr const char* name = "expert_act";
  mat<float> act;
  mat<const float> gate_up;
  dispatch d;
  vec<const float> gate;  // (N·K) or empty
  activation_mask mask;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t m = i / act.cols(), f = i % act.cols();
    if (m >= d.first[d.experts()]) return;
    float value = silu(gate_up(m, f)) * gate_up(m, act.cols() + f);
    if (mask.masks()) value *= mask.factor(d.row[m], d.expert[m], f);
    act.data()[i] = gate.data() ? gate[d.choice[m]] * value : value;
  }
};

/// Assignments of a row in the order of its experts' ids, which is their order in the dispatch.
struct row_assignments {
  const int* assignment;  // (K) of the row
  int K, last = -1;
  /// The next one, or -1.
  MOESKIP_HD int next() {
    int best = -1;
    for (int k = 0; k < K; ++k)
      if (assignment[k] > last && (best < 0 || assignment[k] < best)) best = assignment[k];
    if (best >= 0) last = best;
    return best;
  }
};

/// y (N, D) = residual + Σ gate · down act of few rows: a warp an output, which goes through the row's experts and asks
/// for the next one's weights before it multiplies. Neighbours make the same output of other rows: who shares an expert
/// reads its weights at about the same time, once from memory.
template <class W> struct experts_down {
  static constexpr const char* name = "experts_down";
  mat<float> y;
  mat<const float> residual, act;
  cube<const W> w;  // (E, D, F)
  dispatch d;
  vec<const float> gate;  // (N·K)
  int K;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t item = b.block() * b.warps() + b.warp(), N = y.rows();
    if (item >= y.size()) return;
    const index_t n = item % N, o = item / N;
    const int F = int(w.cols()), own = b.lane() * pack;
    const auto row = [&](int m) { return m < 0 ? nullptr : w.plane(d.expert[m]).row(o).data(); };
    float out = residual(n, o);
    row_assignments mine{d.assignment.data() + n * K, K};
    using ahead = packs_ahead<W, packs_at_once<W>>;
    ahead next;
    int m = mine.next();
    next.ask(row(m), own, F);
    while (m >= 0) {
      const int then = mine.next();
      float sum = 0;
      for (int first = own, end = own + F; first < end; first += packs_at_once<W> * ahead::step) {
        const ahead now = next;
        const int after = first + packs_at_once<W> * ahead::step;
        if (after < end) next.ask(row(m), after, F);
        else next.ask(row(then), own, F);
        unrolled<packs_at_once<W>>([&](auto p) {
          const int i = first + p * ahead::step;
          if (i >= F) return;
          float value[pack];
          load_pack(value, &act(m, 0), i, F);
          for (int j = 0; j < pack; ++j) sum += to<float>(now.weight[p].value[j]) * value[j];
        });
      }
      out += gate[d.choice[m]] * b.warp_sum(sum);
      m = then;
    }
    if (b.lane() == 0) y(n, o) = out;
  }
};

/// y (N, D) = residual + Σ weight · out_m over the row's assignments; residual and weights may be missing.
struct add_experts {
  static constexpr const char* name = "add_experts";
  mat<float> y;
  mat<const float> residual, out;  // (N, D) or empty, (M, D)
  dispatch d;
  vec<const float> gate;  // (N·K) or empty: 1
  int K;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t n = i / y.cols(), col = i % y.cols();
    float sum = residual.data() ? residual(n, col) : 0.f;
    row_assignments mine{d.assignment.data() + n * K, K};
    for (int m; (m = mine.next()) >= 0;) sum += (gate.data() ? gate[d.choice[m]] : 1.f) * out(m, col);
    y.data()[i] = sum;
  }
};

}  // namespace phase

namespace detail {

/// At least the tiles of so many rows that the assignments of all experts fill.
inline auto row_tiles(const dispatch& d) {
  return [M = d.size(), experts = d.visited.size()](index_t tile) { return M / tile + experts; };
}

}  // namespace detail

template <> struct kernel<experts_t, on_cuda> {
  template <class B, class W, class Memory>
  static void run(B&, mat<float> y, mat<float> gate_up, mat<const float> residual, mat<const float> h,
                  const routing<float>& r, const dispatch& d, const expert_weights<const W>& w, Memory&,
                  const activation_mask& m) {
    using call = detail::device_call<experts_t, B>;
    call::seen(y), call::seen(gate_up), call::seen(residual), call::seen(h), call::seen(r.gate), call::seen(w);
    call::seen(d);
    const auto scope = call::scratch().scope();
    const index_t D = h.cols(), F = w.down.cols(), M = d.size();
    const int K = int(r.gate.cols());
    const vec<const float> gate(r.gate.data(), r.gate.size());
    const mat<float> act = call::scratch().template take<float>(M, F);
    const activation_mask mask = call::with_listed_rows(m);
    if (h.rows() <= detail::invariant_rows) {
      call::launch(detail::warp_each(d.visited.size() * F),
                   phase::expert_units<W>{act, gate_up, h, w.gate_up.together(), d, mask});
      call::launch(detail::warp_each(y.size()),
                   phase::experts_down<W>{y, residual, act, w.down.together(), d, gate, K});
      return;
    }
    detail::multiply_tiles<call>(phase::product_call<W>{.a = {h.data(), D, 1, 0, phase::assigned::rows, d.row.data()},
                                                        .b = {w.gate_up.together().data(), D, 1, 2 * F * D},
                                                        .c = gate_up.data(),
                                                        .cols = 2 * F,
                                                        .depth = D,
                                                        .first = d.first.data(),
                                                        .groups = d.experts(),
                                                        .by = phase::assigned::rows},
                                 detail::row_tiles(d));
    call::each(act.size(), phase::expert_act{act, gate_up, d, {}, mask});
    const mat<float> out = call::scratch().template take<float>(M, D);
    detail::multiply_tiles<call>(phase::product_call<W>{.a = {act.data(), F, 1, 0, phase::assigned::rows},
                                                        .b = {w.down.together().data(), F, 1, D * F},
                                                        .c = out.data(),
                                                        .cols = D,
                                                        .depth = F,
                                                        .first = d.first.data(),
                                                        .groups = d.experts(),
                                                        .by = phase::assigned::rows},
                                 detail::row_tiles(d));
    call::each(y.size(), phase::add_experts{y, residual, out, d, gate, K});
  }
};

}  // namespace moeskip
