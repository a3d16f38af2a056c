// Gates of layers while they are learned: a warp takes a row.
#pragma once

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/parts_of_rows.hpp"
#include "moeskip/ops/layer_gates.hpp"

namespace moeskip {

namespace phase {

struct open_gates {
  static constexpr const char* name = "open_gates";
  static constexpr int barriers = 1;
  vec<float> opened, chances;  // (N) (1)
  mat<const float> logit;
  gate_slope slope;
  gate_draw draw;
  parts_of_rows<1> parts;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    float sum[1] = {0};
    for_rows(b, opened.size(), [&](index_t n) {
      const float score = slope.score(logit(n, 0));
      opened[n] = slope.opened(score + float(draw.noise(n)));
      sum[0] += sigmoid(score);
    });
    parts.add(b, sum, 0, [&](const float(&all)[1]) { chances[0] += all[0] / float(opened.size()); });
  }
};

struct pass_gates {
  static constexpr const char* name = "pass_gates";
  mat<float> y;
  mat<const float> x, made;
  vec<const float> opened;
  MOESKIP_HD void operator()(index_t i) const {
    y.data()[i] = x.data()[i] + opened[i / x.cols()] * (made.data()[i] - x.data()[i]);
  }
};

struct pass_gates_backward {
  static constexpr const char* name = "pass_gates_backward";
  mat<float> d, past, dlogit;
  mat<const float> x, made, logit;
  vec<const float> opened;
  gate_slope slope;
  gate_pull<float> pull;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = b.block() * b.warps() + b.warp();
    if (n >= x.rows()) return;
    const float g = opened[n];
    float dg = 0;
    for (index_t i = b.lane(); i < x.cols(); i += 32) {
      const float of_y = d(n, i);
      dg += of_y * (made(n, i) - x(n, i));
      past(n, i) = (1 - g) * of_y, d(n, i) = g * of_y;
    }
    dg = b.warp_sum(dg);
    if (b.lane() == 0)
      dlogit(n, 0) =
          kernel<pass_gates_backward_t, on_reference>::of_logit(dg, g, logit(n, 0), slope, pull.of_row(x.rows()));
  }
};

}  // namespace phase

template <> struct kernel<open_gates_t, on_cuda> {
  template <class B> static void run(B&, vec<float> opened, vec<float> chances, mat<const float> logit,
                                     const gate_slope& slope, const gate_draw& draw) {
    using call = detail::device_call<open_gates_t, B>;
    const auto scope = call::scratch().scope();
    const launch_shape shape = detail::blocks_of_rows<1>(opened.size());
    call::launch(shape, phase::open_gates{call::seen(opened), call::seen(chances), call::seen(logit), slope,
                                          call::with_listed_rows(draw), detail::parts_for<call, 1>(shape)});
  }
};

template <> struct kernel<pass_gates_t, on_cuda> {
  template <class B>
  static void run(B&, mat<float> y, mat<const float> x, mat<const float> made, vec<const float> opened) {
    using call = detail::device_call<pass_gates_t, B>;
    call::each(x.size(), phase::pass_gates{call::seen(y), call::seen(x), call::seen(made), call::seen(opened)});
  }
};

template <> struct kernel<pass_gates_backward_t, on_cuda> {
  template <class B> static void run(B&, mat<float> d, mat<float> past, mat<float> dlogit, mat<const float> x,
                                     mat<const float> made, vec<const float> opened, mat<const float> logit,
                                     const gate_slope& slope, const gate_pull<float>& pull) {
    using call = detail::device_call<pass_gates_backward_t, B>;
    call::seen(pull.chances);
    call::launch(detail::warp_each(x.rows()),
                 phase::pass_gates_backward{call::seen(d), call::seen(past), call::seen(dlogit), call::seen(x),
                                            call::seen(made), call::seen(logit), call::seen(opened), slope, pull});
  }
};

}  // namespace moeskip
