// The head of a MoE block: normalise, score, route, and sort the choices by expert. The stream x that comes to it may be
// a product that is still due.
//   h = rms_norm(x) · gain,   logits = h wᵀ,   r = router(logits)      x, h (N, I)   w (E · logits_per_expert, I)
// A stage of its own so that a backend may fuse it; by default it is composed of the ops that it stands for.
#pragma once

#include "moeskip/ops/dispatch.hpp"
#include "moeskip/ops/embed.hpp"
#include "moeskip/ops/late_product.hpp"
#include "moeskip/ops/norm_linear.hpp"
#include "moeskip/ops/route.hpp"

namespace moeskip {

template <class W> struct router_weights {
  vec<const W> norm;  // (I)
  mat<const W> rows;  // (E · logits_per_expert, I)
  vec<const W> bias;  // (E) of the selection, or empty
};

struct norm_route_t {
  static constexpr const char* name = "norm_route";
  /// As a capacity: nobody asks for the choices sorted.
  static constexpr index_t unsorted = -1;

  /// Whether B makes a product of N rows that is due in one go with what follows. Else whoever hands it over may as well
  /// make it.
  template <class B, class R> static constexpr bool joins([[maybe_unused]] index_t N) {
    if constexpr (has_kernel<norm_route_t, B>)
      return kernel<norm_route_t, family_of<norm_route_t, B>>::template joins<R>(N);
    else return false;
  }

  /// Makes x where it is due, fills h, logits and r, and returns r's choices sorted, with a capacity or 0: no limit.
  /// The selection bias stands in w, not in the call. Scores are not rounded. Throws like route and sort_choices.
  template <class B, Router R, class Memory>
  dispatch operator()(B& b, mat<scalar_t<B>> h, mat<scalar_t<B>> logits, const routing<scalar_t<B>>& r,
                      const late_product<scalar_t<B>, weight_t<B>>& x, const router_weights<weight_t<B>>& w, float eps,
                      const R& router, const routing_call<scalar_t<B>>& call, index_t capacity, Memory& memory) const {
    if constexpr (has_kernel<norm_route_t, B>) {
      const index_t N = x.y.rows(), I = x.y.cols();
      detail::expect_routing<R>(name, r, logits, call);
      expect_shape(name, "h", h, N, I);
      expect_shape(name, "norm", w.norm, I);
      if (logits.cols()) expect_shape(name, "rows", w.rows, logits.cols(), I);
      if (w.bias.size()) expect_shape(name, "bias", w.bias, r.load.size());
      if (x.due()) {
        expect_shape(name, "weights of x", x.w, I, x.x.cols());
        expect_shape(name, "factors of x", x.x, N, x.w.cols());
        if (x.base.data()) expect_shape(name, "base of x", x.base, N, I);
      }
      dispatch d;
      run_kernel<norm_route_t>(b, d, h, logits, r, x, w, eps, router, call, capacity, memory);
      return d;
    } else return by_parts(b, h, logits, r, x, w, eps, router, call, capacity, memory);
  }

  template <class B, class R, class Memory>
  static dispatch by_parts(B& b, mat<scalar_t<B>> h, mat<scalar_t<B>> logits, const routing<scalar_t<B>>& r,
                           const late_product<scalar_t<B>, weight_t<B>>& x, const router_weights<weight_t<B>>& w,
                           float eps, const R& router, routing_call<scalar_t<B>> call, index_t capacity,
                           Memory& memory) {
    make_due(b, x);
    auto&& exact = unrounded(b);
    if constexpr (logits_per_expert<R> != 0) norm_linear(exact, logits, h, x.y, w.norm, w.rows, eps);
    else rms_norm(b, h, x.y, w.norm, eps);
    const index_t E = r.load.size();
    if (w.bias.size()) {
      static constexpr int row = 0;  // widened as a table of one
      const mat<scalar_t<B>> bias = memory.template take<scalar_t<B>>(1, E);
      embed(b, bias, {&row, 1}, mat<const weight_t<B>>(w.bias.data(), 1, E));
      call.bias = bias.row(0);
    }
    route(b, r, logits, router, call, memory);
    if (capacity == unsorted) return {};
    return sort_choices(b, r.chosen, int(E), capacity, memory);
  }
};
inline constexpr norm_route_t norm_route{};

}  // namespace moeskip
