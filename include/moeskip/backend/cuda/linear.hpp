// Linear maps. Up to 16 rows: a warp makes one output of all rows, reading its weights once; a row's sum is made alike
// whatever the other rows are. More rows: gemm.hpp.
#pragma once

#include "moeskip/backend/cuda/gemm.hpp"
#include "moeskip/ops/norm_linear.hpp"

namespace moeskip {

namespace phase {

template <class W> struct few_rows {
  static constexpr const char* name = "few_rows";
  mat<float> y;        // (N, O)
  mat<const float> x;  // (N, I)
  mat<const W> w;      // (O, I)
  mat<const float> residual;
  mat<const W> first_weights() const { return w; }
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t o = b.block() * b.warps() + b.warp();
    if (o >= w.rows()) return;
    const auto from = [&](index_t n) { return plain_rows{x, n}; };
    products_of_rows<1>(b, {&w(o, 0)}, int(w.cols()), 0, x.rows(), from, [&](index_t n, const float(&made)[1]) {
      y(n, o) = residual.data() ? residual(n, o) + made[0] : made[0];
    });
  }
};

/// Rows that are normalised while they are read.
template <class W> struct normed_rows {
  static constexpr int together = 1;  // packs: their gains take registers, too
  mat<const float> x;
  vec<const W> gain;
  const float* scale;  // (N) 1 / rms
  index_t first;
  MOESKIP_HD void load(float (&out)[pack], int t, index_t i) const {
    float of_gain[pack];
    load_pack(out, &x(first + t, 0), i, x.cols());
    load_pack(of_gain, gain.data(), i, x.cols());
    for (int j = 0; j < pack; ++j) out[j] = out[j] * scale[first + t] * of_gain[j];
  }
};

/// h = rms_norm(x), y = h wᵀ of few rows: every block finds the rows' scales for itself, all write down h together.
template <class W> struct norm_few_rows {
  static constexpr const char* name = "norm_few_rows";
  static constexpr int barriers = 1;
  static constexpr bool strides = true;  // over outputs, whatever the number of blocks
  mat<float> y, h;                       // (N, O) (N, I)
  mat<const float> x;                    // (N, I)
  vec<const W> gain;
  mat<const W> w;  // (O, I)
  float eps;
  mat<const W> first_weights() const { return w; }
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    float* scale = b.shared();
    for (index_t n = b.warp(); n < x.rows(); n += b.warps()) {
      const float r = reciprocal_rms(b, &x(n, 0), x.cols(), eps);
      if (b.lane() == 0) scale[n] = r;
    }
    b.sync(0);
    for (index_t i = b.block() * b.threads() + b.thread(); i < h.size(); i += b.blocks() * b.threads())
      h.data()[i] = x.data()[i] * scale[i / x.cols()] * to<float>(gain[i % x.cols()]);
    const auto from = [&](index_t n) { return normed_rows<W>{x, gain, scale, n}; };
    for (index_t o = b.block() * b.warps() + b.warp(); o < w.rows(); o += b.blocks() * b.warps())
      products_of_rows<1>(b, {&w(o, 0)}, int(w.cols()), 0, x.rows(), from,
                          [&](index_t n, const float(&made)[1]) { y(n, o) = made[0]; });
  }
};

}  // namespace phase

template <> struct kernel<linear_t, on_cuda> {
  template <class B, class W>
  static void run(B&, mat<float> y, mat<const float> x, mat<const W> w, mat<const float> residual) {
    using call = detail::device_call<linear_t, B>;
    call::seen(y), call::seen(x), call::seen(w), call::seen(residual);
    if (x.rows() <= detail::invariant_rows) {
      call::launch(detail::warp_each(w.rows()), phase::few_rows<W>{y, x, w, residual});
    } else {
      detail::multiply<call>(phase::product_call<W>{.a = {x.data(), x.cols(), 1},
                                                    .b = {w.data(), w.cols(), 1},
                                                    .c = y.data(),
                                                    .base = residual.data(),
                                                    .rows = y.rows(),
                                                    .cols = y.cols(),
                                                    .depth = x.cols()},
                             x.rows());
    }
  }
};

template <> struct kernel<norm_linear_t, on_cuda> {
  static constexpr index_t most_blocks = 1024;  // each one normalises the rows again
  template <class B, class W>
  static void run(B& b, mat<float> y, mat<float> h, mat<const float> x, vec<const W> gain, mat<const W> w, float eps) {
    using call = detail::device_call<norm_linear_t, B>;
    if (x.rows() > detail::invariant_rows) {
      rms_norm(b, h, x, gain, eps);
      return linear(b, y, h, w);
    }
    expect_shape(norm_linear_t::name, "y", y, x.rows(), w.rows());
    launch_shape shape = detail::warp_each(w.rows());
    shape.blocks = std::min(shape.blocks, most_blocks), shape.shared = x.rows();
    call::launch(shape, phase::norm_few_rows<W>{call::seen(y), call::seen(h), call::seen(x), call::seen(gain),
                                                call::seen(w), eps});
  }
};

template <> struct kernel<linear_backward_t, on_cuda> {
  template <class B, class W>
  static void run(B&, mat<float> dx, mat<float> dw, mat<const float> dy, mat<const float> x, mat<const W> w) {
    using call = detail::device_call<linear_backward_t, B>;
    call::seen(dx), call::seen(dw), call::seen(dy), call::seen(x), call::seen(w);
    if (dx.data())
      detail::multiply<call>(phase::product_call<W>{.a = {dy.data(), dy.cols(), 1},
                                                    .b = {w.data(), 1, w.cols()},
                                                    .c = dx.data(),
                                                    .rows = x.rows(),
                                                    .cols = x.cols(),
                                                    .depth = w.rows()},
                             x.rows());
    if (dw.data())
      detail::multiply<call>(phase::product_call<float>{.a = {dy.data(), 1, dy.cols()},
                                                        .b = {x.data(), 1, x.cols()},
                                                        .c = dw.data(),
                                                        .base = dw.data(),
                                                        .rows = w.rows(),
                                                        .cols = w.cols(),
                                                        .depth = x.rows()},
                             x.rows());
  }
};

}  // namespace moeskip
