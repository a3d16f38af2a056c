// Root-mean-square normalisation of groups of columns, in place: of the heads of a fused projection, say.
//   y_n,j = x_n,j · r_j · gain,   r_j = 1 / sqrt(mean(x_n,j²) + eps),   j a group
//   x, y (N, P)   gain (width)                          QK-norm: Dehghani et al. 2023, arXiv:2302.05442
#pragma once

#include <cmath>

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// `count` groups of `width` columns that stand side by side from column `first` on.
struct column_groups {
  index_t first, count, width;
  MOESKIP_HD constexpr index_t end() const { return first + count * width; }
};

/// Throws shape_error, also where the groups do not lie within the columns.
inline void expect_groups(std::string_view op, const column_groups& g, index_t columns) {
  MOESKIP_CHECK(shape_error, g.first >= 0 && g.count >= 0 && g.width >= 1 && g.end() <= columns, op,
                ": groups up to column ", g.end(), " do not lie within ", columns, " columns");
}

/// x(N,P): the groups are normalised, other columns stay. A row's bits do not depend on other rows. Throws shape_error.
struct norm_groups_t {
  static constexpr const char* name = "norm_groups";
  template <class B>
  void operator()(B& b, mat<scalar_t<B>> x, vec<const weight_t<B>> gain, const column_groups& groups, float eps) const {
    expect_groups(name, groups, x.cols());
    expect_shape(name, "gain", gain, groups.width);
    run_kernel<norm_groups_t>(b, x, gain, groups, eps);
  }
};
inline constexpr norm_groups_t norm_groups{};

/// dx(N,P), the gradient of y on entry, becomes that of x in the groups' columns; dgain(width) += …. x is what it was
/// before the norm. Throws shape_error.
struct norm_groups_backward_t {
  static constexpr const char* name = "norm_groups_backward";
  template <class B> void operator()(B& b, mat<scalar_t<B>> dx, vec<scalar_t<B>> dgain, mat<const scalar_t<B>> x,
                                     vec<const weight_t<B>> gain, const column_groups& groups, float eps) const {
    expect_groups(name, groups, x.cols());
    expect_shape(name, "dx", dx, x.rows(), x.cols());
    expect_shape(name, "gain", gain, groups.width);
    expect_shape(name, "dgain", dgain, groups.width);
    run_kernel<norm_groups_backward_t>(b, dx, dgain, x, gain, groups, eps);
  }
};
inline constexpr norm_groups_backward_t norm_groups_backward{};

template <> struct kernel<norm_groups_t, on_reference> {
  template <class T> static T reciprocal_rms(const T* x, index_t width, float eps) {
    using std::sqrt;
    T squares{};
    for (index_t i = 0; i < width; ++i) squares += x[i] * x[i];
    return T(1) / sqrt(squares / T(real_t<T>(width)) + T(eps));
  }
  template <class B, class T, class W>
  static void run(B&, mat<T> x, vec<const W> gain, const column_groups& g, float eps) {
    for (index_t n = 0; n < x.rows(); ++n)
      for (T* group = x.row(n).data() + g.first; group < x.row(n).data() + g.end(); group += g.width) {
        const T r = reciprocal_rms(group, g.width, eps);
        for (index_t i = 0; i < g.width; ++i) group[i] = group[i] * r * to<T>(gain[i]);
      }
  }
};

template <> struct kernel<norm_groups_backward_t, on_reference> {
  template <class B, class T, class W>
  static void run(B&, mat<T> dx, vec<T> dgain, mat<const T> x, vec<const W> gain, const column_groups& g, float eps) {
    for (index_t n = 0; n < x.rows(); ++n)
      for (index_t first = g.first; first < g.end(); first += g.width) {
        const T* in = x.row(n).data() + first;
        T* d = dx.row(n).data() + first;
        const T r = kernel<norm_groups_t, on_reference>::reciprocal_rms(in, g.width, eps);
        T dot{};  // Σ dy · gain · x r
        for (index_t i = 0; i < g.width; ++i) {
          dot += d[i] * to<T>(gain[i]) * in[i] * r;
          dgain[i] += d[i] * in[i] * r;
        }
        const T mean = dot / T(real_t<T>(g.width));
        for (index_t i = 0; i < g.width; ++i) d[i] = r * (d[i] * to<T>(gain[i]) - in[i] * r * mean);
      }
  }
};

}  // namespace moeskip
