// Linear maps. Up to 16 rows: a warp makes one output of all rows, reading its weights once; a row's sum is made alike
// whatever the other rows are. More rows: the tiled product (product.hpp).
#pragma once

#include "moeskip/backend/cuda/product.hpp"
#include "moeskip/ops/linear.hpp"

namespace moeskip {

namespace phase {

template <class W> struct few_rows {
  static constexpr const char* name = "few_rows";
  mat<float> y;        // (N, O)
  mat<const float> x;  // (N, I)
  mat<const W> w;      // (O, I)
  mat<const float> residual;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t o = b.block() * b.warps() + b.warp();
    if (o >= w.rows()) return;
    for (index_t n = 0; n < x.rows(); n += rows_at_once) {
      const int rows = int(x.rows() - n < rows_at_once ? x.rows() - n : rows_at_once);
      float sum[rows_at_once];
      lane_products(sum, &w(o, 0), w.cols(), b.lane(), rows, [&](int t) { return &x(n + t, 0); });
      for (int t = 0; t < rows_at_once; ++t) {
        if (t >= rows) break;
        const float made = b.warp_sum(sum[t]);
        if (b.lane() == 0) y(n + t, o) = residual.data() ? residual(n + t, o) + made : made;
      }
    }
  }
};

}  // namespace phase

template <> struct kernel<linear_t, on_cuda> {
  static constexpr index_t few = 16;  // rows whose bits are their own
  template <class B, class W>
  static void run(B&, mat<float> y, mat<const float> x, mat<const W> w, mat<const float> residual) {
    using call = detail::device_call<linear_t, B>;
    call::seen(y), call::seen(x), call::seen(w), call::seen(residual);
    if (x.rows() <= few) {
      call::launch(detail::warp_each(w.rows()), phase::few_rows<W>{y, x, w, residual});
    } else {
      detail::multiply<call>(phase::product<W>{.a = {x.data(), x.cols(), 1},
                                               .b = {w.data(), w.cols(), 1},
                                               .c = y.data(),
                                               .base = residual.data(),
                                               .rows = y.rows(),
                                               .cols = y.cols(),
                                               .depth = x.cols()},
                             y.rows());
    }
  }
};

template <> struct kernel<linear_backward_t, on_cuda> {
  template <class B, class W>
  static void run(B&, mat<float> dx, mat<float> dw, mat<const float> dy, mat<const float> x, mat<const W> w) {
    using call = detail::device_call<linear_backward_t, B>;
    call::seen(dx), call::seen(dw), call::seen(dy), call::seen(x), call::seen(w);
    if (dx.data())
      detail::multiply<call>(phase::product<W>{.a = {dy.data(), dy.cols(), 1},
                                               .b = {w.data(), 1, w.cols()},
                                               .c = dx.data(),
                                               .rows = x.rows(),
                                               .cols = x.cols(),
                                               .depth = w.rows()},
                             x.rows());
    if (dw.data())
      detail::multiply<call>(phase::product<float>{.a = {dy.data(), 1, dy.cols()},
                                                   .b = {x.data(), 1, x.cols()},
                                                   .c = dw.data(),
                                                   .base = dw.data(),
                                                   .rows = w.rows(),
                                                   .cols = w.cols(),
                                                   .depth = x.rows()},
                             w.rows());
  }
};

}  // namespace moeskip
