// Causal grouped-query attention of new rows over the cache.       Ainslie et al. 2023, arXiv:2305.13245
//   out_n,h = Σ_j softmax_j(scale · q_n,h · k_j,g) v_j,g,   g = h · G / H,   j <= position_n in slot_n
//   q, out (N, H·d)   keys, values (S, C, G·d)
#pragma once

#include <cmath>

#include "moeskip/ops/rope.hpp"

namespace moeskip {

/// The keys and values of the rows themselves must already stand in the cache; out must not overlap q. On cpu, calls of
/// 1 to 16 rows give every row the same bits whatever the other rows are. Throws shape_error, and config_error for a
/// row outside the cache.
struct attend_t {
  static constexpr const char* name = "attend";
  template <class B, class Memory> void operator()(B& b, mat<scalar_t<B>> out, mat<const scalar_t<B>> q,
                                                   kv_layer<scalar_t<B>> kv, const token_rows& rows,
                                                   const attention_shape& shape, Memory& memory) const {
    expect_shape(name, "q", q, rows.size(), shape.q_dim());
    expect_shape(name, "out", out, rows.size(), shape.q_dim());
    expect_kv(name, rows, kv, shape);
    run_kernel<attend_t>(b, out, q, kv, rows, shape, memory);
  }
};
inline constexpr attend_t attend{};

/// dq(N, H·d) = …; dkv += …. The softmax is computed again from q and the keys. Throws like attend.
struct attend_backward_t {
  static constexpr const char* name = "attend_backward";
  template <class B, class Memory> void operator()(B& b, mat<scalar_t<B>> dq, kv_layer<scalar_t<B>> dkv,
                                                   mat<const scalar_t<B>> dout, mat<const scalar_t<B>> q,
                                                   kv_layer<scalar_t<B>> kv, const token_rows& rows,
                                                   const attention_shape& shape, Memory& memory) const {
    expect_shape(name, "dq", dq, rows.size(), shape.q_dim());
    expect_shape(name, "dout", dout, rows.size(), shape.q_dim());
    expect_shape(name, "q", q, rows.size(), shape.q_dim());
    expect_kv(name, rows, kv, shape);
    expect_shape(name, "dkeys", dkv.keys, kv.keys.extent(0), kv.keys.extent(1), shape.kv_dim());
    expect_shape(name, "dvalues", dkv.values, kv.keys.extent(0), kv.keys.extent(1), shape.kv_dim());
    run_kernel<attend_backward_t>(b, dq, dkv, dout, q, kv, rows, shape, memory);
  }
};
inline constexpr attend_backward_t attend_backward{};

template <> struct kernel<attend_t, on_reference> {
  /// Probabilities of one query over the first `count` keys of its slot and head.
  template <class T>
  static void probabilities(T* p, const T* query, mat<const T> keys, int offset, int count, const attention_shape& s) {
    using std::exp;
    real_t<T> highest = -INFINITY;
    for (int j = 0; j < count; ++j) {
      T dot{};
      for (int i = 0; i < s.head_dim; ++i) dot += query[i] * keys(j, offset + i);
      p[j] = dot * T(s.scale);
      highest = std::max(highest, real_part(p[j]));
    }
    T total{};
    for (int j = 0; j < count; ++j) total += p[j] = exp(p[j] - T(highest));
    for (int j = 0; j < count; ++j) p[j] /= total;
  }

  template <class B, class T, class Memory> static void run(B&, mat<T> out, mat<const T> q, kv_layer<T> kv,
                                                            const token_rows& rows, const attention_shape& s,
                                                            Memory& memory) {
    const auto scope = memory.scope();
    T* p = memory.template take<T>(kv.keys.extent(1)).data();
    for (index_t n = 0; n < rows.size(); ++n)
      for (int h = 0; h < s.heads; ++h) {
        const int offset = h * s.kv_heads / s.heads * s.head_dim, count = rows.position[n] + 1;
        const mat<const T> keys = kv.keys.plane(rows.slot[n]), values = kv.values.plane(rows.slot[n]);
        probabilities(p, &q(n, h * s.head_dim), keys, offset, count, s);
        for (int i = 0; i < s.head_dim; ++i) {
          T sum{};
          for (int j = 0; j < count; ++j) sum += p[j] * values(j, offset + i);
          out(n, h * s.head_dim + i) = sum;
        }
      }
  }
};

template <> struct kernel<attend_backward_t, on_reference> {
  template <class B, class T, class Memory> static void run(B&, mat<T> dq, kv_layer<T> dkv, mat<const T> dout,
                                                            mat<const T> q, kv_layer<T> kv, const token_rows& rows,
                                                            const attention_shape& s, Memory& memory) {
    const auto scope = memory.scope();
    T* p = memory.template take<T>(kv.keys.extent(1)).data();
    T* dp = memory.template take<T>(kv.keys.extent(1)).data();
    for (index_t n = 0; n < rows.size(); ++n)
      for (int h = 0; h < s.heads; ++h) {
        const int offset = h * s.kv_heads / s.heads * s.head_dim, count = rows.position[n] + 1;
        const mat<const T> keys = kv.keys.plane(rows.slot[n]), values = kv.values.plane(rows.slot[n]);
        const mat<T> dkeys = dkv.keys.plane(rows.slot[n]), dvalues = dkv.values.plane(rows.slot[n]);
        const T *query = &q(n, h * s.head_dim), *dy = &dout(n, h * s.head_dim);
        kernel<attend_t, on_reference>::probabilities(p, query, keys, offset, count, s);
        T mean{};  // Σ_j p_j dp_j
        for (int j = 0; j < count; ++j) {
          dp[j] = T{};
          for (int i = 0; i < s.head_dim; ++i) {
            dp[j] += dy[i] * values(j, offset + i);
            dvalues(j, offset + i) += p[j] * dy[i];
          }
          mean += p[j] * dp[j];
        }
        for (int i = 0; i < s.head_dim; ++i) dq(n, h * s.head_dim + i) = T{};
        for (int j = 0; j < count; ++j) {
          const T dscore = p[j] * (dp[j] - mean) * T(s.scale);
          for (int i = 0; i < s.head_dim; ++i) {
            dq(n, h * s.head_dim + i) += dscore * keys(j, offset + i);
            dkeys(j, offset + i) += dscore * query[i];
          }
        }
      }
  }
};

}  // namespace moeskip
