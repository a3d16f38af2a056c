// OpenMoE's blocks of four matrices: y = down (a · silu(b) · up h), where (a, b) are the halves of gate h.
//   h (N, D)   gate (2F, D)   up (F, D)   down (D, F)                                            arXiv:2402.01739
// Experts are made of smaller ops, one expert after the other in the order of their ids, so that calls of 1 to 16 rows
// give every row the same bits whatever the other rows are.
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/memory/arena.hpp"
#include "moeskip/ops/add_rows.hpp"
#include "moeskip/ops/gated_swiglu.hpp"
#include "moeskip/ops/linear.hpp"
#include "moeskip/tensor/routing.hpp"

namespace moeskip::mlp {

struct gated_swiglu {
  static constexpr std::string_view name = "gated_swiglu";
  static constexpr int gates = 2;
  static constexpr bool trains = false;

  /// act (N, F) from the products (N, 3F).
  template <class B> static void activate(B& b, mat<scalar_t<B>> act, mat<const scalar_t<B>> products) {
    moeskip::gated_swiglu(b, act, products);
  }

  /// y (N, D) = residual (N, D) + Σ_k gate_k · expert_{chosen_k}(h (N, D)).
  template <class B> static void experts(B& b, mat<scalar_t<B>> y, mat<const scalar_t<B>> residual,
                                         mat<const scalar_t<B>> h, const routing<scalar_t<B>>& r, const dispatch& d,
                                         const expert_weights<const weight_t<B>>& w, arena& memory) {
    using T = scalar_t<B>;
    const auto scope = memory.scope();
    const vec<T> factors = memory.take<T>(d.size());
    for (index_t m = 0; m < d.size(); ++m) factors[m] = r.gate.data()[d.choice[m]];
    if (y.data() != residual.data()) std::copy(residual.begin(), residual.end(), y.begin());
    for (int e = 0; e < d.experts(); ++e) {
      const index_t M = d.first[e + 1] - d.first[e], F = w.down.cols();
      if (M == 0) continue;
      const auto of_expert = memory.scope();
      const vec<const int> rows(d.row.data() + d.first[e], M);
      mat<T> few = memory.take<T>(M, h.cols()), products = memory.take<T>(M, 3 * F), act = memory.take<T>(M, F);
      gather_rows(b, few, h, rows);
      linear(b, products, few, w.gate_up.plane(e));
      activate(b, act, products);
      linear(b, few, act, w.down.plane(e));
      add_rows(b, y, few, rows, {factors.data() + d.first[e], M});
    }
  }
};

}  // namespace moeskip::mlp
