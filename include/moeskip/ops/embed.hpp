// Token embedding: x_n = table[token_n].   table (V, D)   x (N, D)
#pragma once

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// Throws config_error for a token outside [0, V).
inline void expect_tokens(vec<const int> tokens, index_t vocab) {
  for (const int token : tokens)
    MOESKIP_CHECK(config_error, token >= 0 && token < vocab, "token id ", token, " is outside the vocabulary of ",
                  vocab);
}

/// Throws shape_error, and config_error for a token outside [0, V).
struct embed_t {
  static constexpr const char* name = "embed";
  template <class B>
  void operator()(B& b, mat<scalar_t<B>> x, vec<const int> tokens, mat<const weight_t<B>> table) const {
    expect_shape(name, "x", x, tokens.size(), table.cols());
    expect_tokens(tokens, table.rows());
    run_kernel<embed_t>(b, x, tokens, table);
  }
};
inline constexpr embed_t embed{};

/// dtable(V,D) += the gradients of the rows that used each token. Throws like embed.
struct embed_backward_t {
  static constexpr const char* name = "embed_backward";
  template <class B>
  void operator()(B& b, mat<scalar_t<B>> dtable, mat<const scalar_t<B>> dx, vec<const int> tokens) const {
    expect_shape(name, "dx", dx, tokens.size(), dtable.cols());
    expect_tokens(tokens, dtable.rows());
    run_kernel<embed_backward_t>(b, dtable, dx, tokens);
  }
};
inline constexpr embed_backward_t embed_backward{};

template <> struct kernel<embed_t, on_reference> {
  template <class B, class T, class W> static void run(B&, mat<T> x, vec<const int> tokens, mat<const W> table) {
    for (index_t n = 0; n < x.rows(); ++n)
      for (index_t i = 0; i < x.cols(); ++i) x(n, i) = to<T>(table(tokens[n], i));
  }
};

template <> struct kernel<embed_backward_t, on_reference> {
  template <class B, class T> static void run(B&, mat<T> dtable, mat<const T> dx, vec<const int> tokens) {
    for (index_t n = 0; n < dx.rows(); ++n)
      for (index_t i = 0; i < dx.cols(); ++i) dtable(tokens[n], i) += dx(n, i);
  }
};

}  // namespace moeskip
