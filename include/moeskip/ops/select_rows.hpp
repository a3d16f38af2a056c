// Rows that take part: layer dropout lets whole sequences leave a layer's computation.
#pragma once

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Throws config_error for a row outside [0, N).
inline void expect_rows(std::string_view op, vec<const int> rows, index_t N) {
  for (const int n : rows)
    MOESKIP_CHECK(config_error, n >= 0 && n < N, op, ": row ", n, " is outside the ", N, " rows there are");
}

/// out(M,D) = x(N,D) at the given rows (M). Throws shape_error, and config_error for a row outside x.
struct gather_rows_t {
  static constexpr const char* name = "gather_rows";
  template <class B> void operator()(B& b, mat<scalar_t<B>> out, mat<const scalar_t<B>> x, vec<const int> rows) const {
    expect_shape(name, "out", out, rows.size(), x.cols());
    expect_rows(name, rows, x.rows());
    run_kernel<gather_rows_t>(b, out, x, rows);
  }
};
inline constexpr gather_rows_t gather_rows{};

/// out(N,D) at the given rows (M) = x(M,D); the other rows stay. Rows are distinct. Throws like gather_rows.
struct scatter_rows_t {
  static constexpr const char* name = "scatter_rows";
  template <class B> void operator()(B& b, mat<scalar_t<B>> out, mat<const scalar_t<B>> x, vec<const int> rows) const {
    expect_shape(name, "x", x, rows.size(), out.cols());
    expect_rows(name, rows, out.rows());
    run_kernel<scatter_rows_t>(b, out, x, rows);
  }
};
inline constexpr scatter_rows_t scatter_rows{};

template <> struct kernel<gather_rows_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> out, mat<const T> x, vec<const int> rows) {
    for (index_t m = 0; m < rows.size(); ++m)
      for (index_t i = 0; i < x.cols(); ++i) out(m, i) = x(rows[m], i);
  }
};

template <> struct kernel<scatter_rows_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> out, mat<const T> x, vec<const int> rows) {
    for (index_t m = 0; m < rows.size(); ++m)
      for (index_t i = 0; i < x.cols(); ++i) out(rows[m], i) = x(m, i);
  }
};

}  // namespace moeskip
