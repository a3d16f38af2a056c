// Rows added to others, each times a number of its own: y_row(m) += factor_m · x_m.
//   y (N, D)   x (M, D)   rows (M) distinct   factors (M)
#pragma once

#include "moeskip/ops/select_rows.hpp"

namespace moeskip {

/// Throws shape_error, and config_error for a row outside y.
struct add_rows_t {
  static constexpr const char* name = "add_rows";
  template <class B> void operator()(B& b, mat<scalar_t<B>> y, mat<const scalar_t<B>> x, vec<const int> rows,
                                     vec<const scalar_t<B>> factors) const {
    expect_shape(name, "x", x, rows.size(), y.cols());
    expect_shape(name, "factors", factors, rows.size());
    expect_rows(name, rows, y.rows());
    run_kernel<add_rows_t>(b, y, x, rows, factors);
  }
};
inline constexpr add_rows_t add_rows{};

template <> struct kernel<add_rows_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> y, mat<const T> x, vec<const int> rows, vec<const T> factors) {
    for (index_t m = 0; m < rows.size(); ++m)
      for (index_t i = 0; i < x.cols(); ++i) y(rows[m], i) += factors[m] * x(m, i);
  }
};

}  // namespace moeskip
