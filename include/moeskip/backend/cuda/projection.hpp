// Phases of what real models do to projections and to experts of four matrices: biases, norms of heads, their sum.
#pragma once

#include <cmath>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/rowwise.hpp"
#include "moeskip/ops/add_bias.hpp"
#include "moeskip/ops/add_rows.hpp"
#include "moeskip/ops/gated_swiglu.hpp"
#include "moeskip/ops/norm_groups.hpp"

namespace moeskip {

namespace phase {

/// A warp normalises one group of one row.
template <class W> struct norm_groups {
  static constexpr const char* name = "norm_groups";
  mat<float> x;
  vec<const W> gain;
  column_groups groups;
  float eps;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t task = b.block() * b.warps() + b.warp();
    if (task >= x.rows() * groups.count) return;
    float* group = &x(task / groups.count, groups.first + task % groups.count * groups.width);
    const float r = reciprocal_rms(b, group, groups.width, eps);
    for (index_t i = b.lane(); i < groups.width; i += 32) group[i] = group[i] * r * to<float>(gain[i]);
  }
};

/// scale (N · count) = 1 / rms of each group.
struct group_scales {
  static constexpr const char* name = "group_scales";
  vec<float> scale;
  mat<const float> x;
  column_groups groups;
  float eps;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t task = b.block() * b.warps() + b.warp();
    if (task >= scale.size()) return;
    const float* group = &x(task / groups.count, groups.first + task % groups.count * groups.width);
    const float r = reciprocal_rms(b, group, groups.width, eps);
    if (b.lane() == 0) scale[task] = r;
  }
};

/// dgain (width) += Σ dy · x · scale over rows and groups, in their order: a thread for each of the few columns.
struct group_gain_gradient {
  static constexpr const char* name = "group_gain_gradient";
  vec<float> dgain;
  vec<const float> scale;
  mat<const float> dy, x;
  column_groups groups;
  MOESKIP_HD void operator()(index_t i) const {
    float sum = 0;
    for (index_t task = 0; task < scale.size(); ++task) {
      const index_t n = task / groups.count, col = groups.first + task % groups.count * groups.width + i;
      sum += dy(n, col) * x(n, col) * scale[task];
    }
    dgain[i] += sum;
  }
};

/// dx, the gradient of what was normalised on entry, by a warp for each group of a row.
template <class W> struct norm_groups_backward {
  static constexpr const char* name = "norm_groups_backward";
  mat<float> dx;
  vec<const float> scale;
  mat<const float> x;
  vec<const W> gain;
  column_groups groups;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t task = b.block() * b.warps() + b.warp();
    if (task >= scale.size()) return;
    const index_t n = task / groups.count, first = groups.first + task % groups.count * groups.width;
    const float r = scale[task];
    float dot = 0;
    for (index_t i = b.lane(); i < groups.width; i += 32)
      dot += dx(n, first + i) * to<float>(gain[i]) * x(n, first + i) * r;
    const float mean = b.warp_sum(dot) / float(groups.width);
    for (index_t i = b.lane(); i < groups.width; i += 32)
      dx(n, first + i) = r * (dx(n, first + i) * to<float>(gain[i]) - x(n, first + i) * r * mean);
  }
};

template <class W> struct add_bias {
  static constexpr const char* name = "add_bias";
  mat<float> y;
  vec<const W> bias;
  MOESKIP_HD void operator()(index_t i) const { y.data()[i] += to<float>(bias[i % y.cols()]); }
};

struct gated_swiglu {
  static constexpr const char* name = "gated_swiglu";
  mat<float> act;             // (M, F)
  mat<const float> products;  // (M, 3F)
  MOESKIP_HD void operator()(index_t i) const {
    const index_t F = act.cols(), m = i / F, f = i % F;
    act.data()[i] = products(m, f) * silu(products(m, F + f)) * products(m, 2 * F + f);
  }
};

struct add_rows {
  static constexpr const char* name = "add_rows";
  mat<float> y;
  mat<const float> x;
  vec<const int> rows;
  vec<const float> factors;
  vec<const int> which;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t m = i / x.cols();
    y(rows[m], i % x.cols()) += factors[which[m]] * x.data()[i];
  }
};

}  // namespace phase

template <> struct kernel<norm_groups_t, on_cuda> {
  template <class B, class W>
  static void run(B&, mat<float> x, vec<const W> gain, const column_groups& groups, float eps) {
    using call = detail::device_call<norm_groups_t, B>;
    call::launch(detail::warp_each(x.rows() * groups.count),
                 phase::norm_groups<W>{call::seen(x), call::seen(gain), groups, eps});
  }
};

template <> struct kernel<norm_groups_backward_t, on_cuda> {
  template <class B, class W> static void run(B&, mat<float> dx, vec<float> dgain, mat<const float> x,
                                              vec<const W> gain, const column_groups& groups, float eps) {
    using call = detail::device_call<norm_groups_backward_t, B>;
    const auto scope = call::scratch().scope();
    const vec<float> scale = call::scratch().template take<float>(x.rows() * groups.count);
    const launch_shape warps = detail::warp_each(scale.size());
    call::launch(warps, phase::group_scales{scale, call::seen(x), groups, eps});
    call::each(scale.size() ? dgain.size() : 0,
               phase::group_gain_gradient{call::seen(dgain), scale, call::seen(dx), x, groups});
    call::launch(warps, phase::norm_groups_backward<W>{dx, scale, x, call::seen(gain), groups});
  }
};

template <> struct kernel<add_bias_t, on_cuda> {
  template <class B, class W> static void run(B&, mat<float> y, vec<const W> bias) {
    using call = detail::device_call<add_bias_t, B>;
    call::each(y.size(), phase::add_bias<W>{call::seen(y), call::seen(bias)});
  }
};

template <> struct kernel<add_bias_backward_t, on_cuda> {
  template <class B> static void run(B&, vec<float> dbias, mat<const float> dy) {
    using call = detail::device_call<add_bias_backward_t, B>;
    call::each(dbias.size(), phase::sum_of_rows{call::seen(dbias), call::seen(dy)});
  }
};

template <> struct kernel<gated_swiglu_t, on_cuda> {
  template <class B> static void run(B&, mat<float> act, mat<const float> products) {
    using call = detail::device_call<gated_swiglu_t, B>;
    call::each(act.size(), phase::gated_swiglu{call::seen(act), call::seen(products)});
  }
};

template <> struct kernel<add_rows_t, on_cuda> {
  template <class B> static void run(B&, mat<float> y, mat<const float> x, vec<const int> rows,
                                     vec<const float> factors, vec<const int> which) {
    using call = detail::device_call<add_rows_t, B>;
    call::each(x.size(), phase::add_rows{call::seen(y), call::seen(x), call::listed(rows), call::seen(factors),
                                         call::listed(which)});
  }
};

}  // namespace moeskip
