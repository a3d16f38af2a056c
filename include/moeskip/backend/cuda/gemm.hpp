// Dense products of calls of more than 16 rows: by a BLAS where the driver has one, which on a GPU is cuBLAS, else tiled.
//   c(i, j) = Σ_k a(i, k) b(k, j), or that is added to c        c (m, n), c(i, j) at c + i + j m
// A BLAS counts along columns. What lies in memory row by row is, read so, its own transpose, so it is asked for
// cᵀ = b aᵀ: the factors change places, columns of c become m, and nothing is moved.
#pragma once

#include "moeskip/backend/cuda/elementwise.hpp"
#include "moeskip/backend/cuda/tensor_product.hpp"

namespace moeskip {

/// A factor as a BLAS takes it: element (i, j) at i + j leading, or, transposed, at j + i leading.
struct gemm_factor {
  const void* data = nullptr;
  index_t leading = 0;
  bool transposed = false;
};

/// A product as a BLAS takes it. Both factors are in bf16, or both in float; sums and c are float.
struct gemm_call {
  gemm_factor a, b;    // (m, k) (k, n)
  float* c = nullptr;  // (m, n)
  index_t m = 0, n = 0, k = 0;
  bool in_bf16 = false;
  bool adds = false;  // to c, which otherwise is not read
};

namespace detail {

/// A factor (rows, depth) that lies packed, as numbers of Product: where it is, or in scratch.
template <class Call, class X> const void* in_product_type(const phase::operand<X>& o, index_t rows, index_t depth) {
  const bool packed = o.depth_step == 1 ? rows == 1 || o.row_step == depth : o.row_step == 1 && o.depth_step == rows;
  MOESKIP_CHECK(error, packed, "gemm: expected a factor of ", rows, " rows and depth ", depth,
                " that lies packed, got steps ", o.row_step, " and ", o.depth_step);
  using P = typename Call::product;
  if constexpr (std::same_as<X, P>) {
    return o.data;
  } else {
    const auto made = Call::scratch().template take<P>(rows * depth);
    using convert = phase::converted<P, X>;
    Call::each(convert::count(made.size()), convert{made, {o.data, made.size()}});
    return made.data();
  }
}

/// A product of one group, whose rows and columns lie packed, as a BLAS takes it.
template <class W> gemm_call by_columns(const phase::product_call<W>& made) {
  // Packed rows are what a BLAS calls columns, so a factor that lies along the depth has k as its leading dimension.
  const bool a_along = made.a.depth_step == 1, b_along = made.b.depth_step == 1;
  return {.a = {made.b.data, b_along ? made.depth : made.cols, b_along},
          .b = {made.a.data, a_along ? made.depth : made.rows, !a_along},
          .c = made.c,
          .m = made.cols,
          .n = made.rows,
          .k = made.depth,
          .adds = made.base != nullptr};
}

/// A dense product of a call of so many rows. A BLAS wants both factors alike, so one that is not of Product is written
/// down as such first. Weights in bf16 become floats too where Product is float, which is exact: such are a router's,
/// with as many columns as experts, for which tiles of 64 × 64 would leave most of a GPU without work.
template <class Call, class W> void multiply(const phase::product_call<W>& made, index_t rows_of_call) {
  if (rows_of_call <= invariant_rows || !Call::driver::has_gemm() || script_steps::open())
    return multiply_tiles<Call>(made, [&](index_t tile) { return ceiling(made.rows, tile); });
  const auto scope = Call::scratch().scope();
  gemm_call g = by_columns(made);
  g.a.data = in_product_type<Call>(made.b, made.cols, made.depth);
  g.b.data = in_product_type<Call>(made.a, made.rows, made.depth);
  g.in_bf16 = Call::on_tensor_cores;
  if (made.base && made.base != made.c) {  // a BLAS adds to c itself
    using copy = phase::converted<float, float>;
    const index_t n = made.rows * made.cols;
    Call::each(copy::count(n), copy{{made.c, n}, {made.base, n}});
  }
  Call::driver::gemm(g);
}

}  // namespace detail

}  // namespace moeskip
