// What projections and mixed blocks ask for: biases, norms of groups of columns, rows added to others, OpenMoE's
// activation.
#pragma once

#include <algorithm>

#include "moeskip/backend/cuda/rowwise.hpp"
#include "moeskip/ops/add_bias.hpp"
#include "moeskip/ops/add_rows.hpp"
#include "moeskip/ops/gated_swiglu.hpp"
#include "moeskip/ops/norm_groups.hpp"

namespace moeskip {

namespace phase {

template <class W> struct add_bias {
  static constexpr const char* name = "add_bias";
  mat<float> y;
  vec<const W> bias;
  MOESKIP_HD void operator()(index_t i) const { y.data()[i] += to<float>(bias[i % y.cols()]); }
};

/// parts (P, D): sums of every P-th row of x (N, D).
struct column_sums {
  static constexpr const char* name = "column_sums";
  mat<float> parts;
  mat<const float> x;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t part = i / x.cols(), col = i % x.cols();
    float sum = 0;
    for (index_t n = part; n < x.rows(); n += parts.rows()) sum += x(n, col);
    parts.data()[i] = sum;
  }
};

struct add_rows {
  static constexpr const char* name = "add_rows";
  mat<float> y;
  mat<const float> x;
  vec<const int> rows;
  vec<const float> factors;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t m = i / x.cols();
    y(rows[m], i % x.cols()) += factors[m] * x.data()[i];
  }
};

struct gated_swiglu {
  static constexpr const char* name = "gated_swiglu";
  mat<float> act;
  mat<const float> products;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t F = act.cols(), m = i / F, f = i % F;
    act.data()[i] = products(m, f) * silu(products(m, F + f)) * products(m, 2 * F + f);
  }
};

/// Where group `item` of all rows' groups begins.
MOESKIP_HD inline index_t group_begin(index_t item, const column_groups& g, index_t columns) {
  return item / g.count * columns + g.first + item % g.count * g.width;
}

/// A warp a group.
template <class W> struct norm_groups {
  static constexpr const char* name = "norm_groups";
  mat<float> x;
  vec<const W> gain;
  column_groups groups;
  float eps;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t item = b.block() * b.warps() + b.warp();
    if (item >= x.rows() * groups.count) return;
    float* group = x.data() + group_begin(item, groups, x.cols());
    const float r = reciprocal_rms(b, group, groups.width, eps);
    for (index_t i = b.lane(); i < groups.width; i += 32) group[i] = group[i] * r * to<float>(gain[i]);
  }
};

/// scale (N · groups) = 1 / rms of each group. A warp each.
struct group_scales {
  static constexpr const char* name = "group_scales";
  vec<float> scale;
  mat<const float> x;
  column_groups groups;
  float eps;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t item = b.block() * b.warps() + b.warp();
    if (item >= scale.size()) return;
    const float r = reciprocal_rms(b, x.data() + group_begin(item, groups, x.cols()), groups.width, eps);
    if (b.lane() == 0) scale[item] = r;
  }
};

/// parts (P, width): what every P-th group sends to the gain.
struct group_gain_gradient {
  static constexpr const char* name = "group_gain_gradient";
  mat<float> parts;
  vec<const float> scale;
  mat<const float> dy, x;
  column_groups groups;
  MOESKIP_HD void operator()(index_t i) const {
    float sum = 0;
    for (index_t item = i / groups.width; item < scale.size(); item += parts.rows()) {
      const index_t at = group_begin(item, groups, x.cols()) + i % groups.width;
      sum += dy.data()[at] * x.data()[at] * scale[item];
    }
    parts.data()[i] = sum;
  }
};

/// dx, in the place of dy. A warp a group.
template <class W> struct norm_groups_backward {
  static constexpr const char* name = "norm_groups_backward";
  mat<float> dx;
  vec<const float> scale;
  mat<const float> x;
  vec<const W> gain;
  column_groups groups;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t item = b.block() * b.warps() + b.warp();
    if (item >= scale.size()) return;
    const index_t at = group_begin(item, groups, x.cols());
    const float *in = x.data() + at, r = scale[item];
    float *d = dx.data() + at, dot = 0;
    for (index_t i = b.lane(); i < groups.width; i += 32) dot += d[i] * to<float>(gain[i]) * in[i] * r;
    const float mean = b.warp_sum(dot) / float(groups.width);
    for (index_t i = b.lane(); i < groups.width; i += 32) d[i] = r * (d[i] * to<float>(gain[i]) - in[i] * r * mean);
  }
};

}  // namespace phase

template <> struct kernel<add_bias_t, on_cuda> {
  template <class B, class W> static void run(B&, mat<float> y, vec<const W> bias) {
    using call = detail::device_call<add_bias_t, B>;
    call::each(y.size(), phase::add_bias<W>{call::seen(y), call::seen(bias)});
  }
};

template <> struct kernel<add_bias_backward_t, on_cuda> {
  static constexpr index_t parts = 256;
  template <class B> static void run(B&, vec<float> dbias, mat<const float> dy) {
    using call = detail::device_call<add_bias_backward_t, B>;
    const auto scope = call::scratch().scope();
    const mat<float> sums = call::scratch().template take<float>(std::min(parts, dy.rows()), dy.cols());
    call::each(sums.size(), phase::column_sums{sums, call::seen(dy)});
    call::each(dbias.size(), phase::sum_of_rows{call::seen(dbias), sums});
  }
};

template <> struct kernel<add_rows_t, on_cuda> {
  template <class B>
  static void run(B&, mat<float> y, mat<const float> x, vec<const int> rows, vec<const float> factors) {
    using call = detail::device_call<add_rows_t, B>;
    call::each(x.size(), phase::add_rows{call::seen(y), call::seen(x), call::listed(rows), call::seen(factors)});
  }
};

template <> struct kernel<gated_swiglu_t, on_cuda> {
  template <class B> static void run(B&, mat<float> act, mat<const float> products) {
    using call = detail::device_call<gated_swiglu_t, B>;
    call::each(act.size(), phase::gated_swiglu{call::seen(act), call::seen(products)});
  }
};

template <> struct kernel<norm_groups_t, on_cuda> {
  template <class B, class W>
  static void run(B&, mat<float> x, vec<const W> gain, const column_groups& groups, float eps) {
    using call = detail::device_call<norm_groups_t, B>;
    call::launch(detail::warp_each(x.rows() * groups.count),
                 phase::norm_groups<W>{call::seen(x), call::seen(gain), groups, eps});
  }
};

template <> struct kernel<norm_groups_backward_t, on_cuda> {
  static constexpr index_t parts = 256;
  template <class B, class W> static void run(B&, mat<float> dx, vec<float> dgain, mat<const float> x,
                                              vec<const W> gain, const column_groups& groups, float eps) {
    using call = detail::device_call<norm_groups_backward_t, B>;
    call::seen(dx), call::seen(dgain), call::seen(x), call::seen(gain);
    const auto scope = call::scratch().scope();
    const index_t items = x.rows() * groups.count;
    const vec<float> scale = call::scratch().template take<float>(items);
    const mat<float> sums = call::scratch().template take<float>(std::min(parts, items), groups.width);
    call::launch(detail::warp_each(items), phase::group_scales{scale, x, groups, eps});
    call::each(sums.size(), phase::group_gain_gradient{sums, scale, dx, x, groups});
    call::each(dgain.size(), phase::sum_of_rows{dgain, sums});
    call::launch(detail::warp_each(items), phase::norm_groups_backward<W>{dx, scale, x, gain, groups});
  }
};

}  // namespace moeskip
