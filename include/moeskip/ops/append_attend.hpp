// From the projection of new rows to their attention over the cache: queries, keys and values are adjusted and rotated,
// keys and values appended, and every row attends to what it sees, rows of the same call among it.
//   qkv (N, (H + 2G)·d)   out (N, H·d)   keys, values (S, C, G·d)
// A stage of its own so that a backend may fuse it; by default it is composed of smaller ops.
#pragma once

#include "moeskip/ops/attend.hpp"
#include "moeskip/ops/qkv_adjustment.hpp"

namespace moeskip {

/// qkv is used up. Calls of 1 to 16 rows give every row the same bits whatever the other rows are. Throws shape_error,
/// and config_error for a row that has no place in the cache.
struct append_attend_t {
  static constexpr const char* name = "append_attend";
  template <class B, class Memory>
  void operator()(B& b, mat<scalar_t<B>> out, mat<scalar_t<B>> qkv, kv_layer<scalar_t<B>> kv, const token_rows& rows,
                  const qkv_adjustment<weight_t<B>>& adjustment, const attention_shape& shape, Memory& memory) const {
    expect_shape(name, "qkv", qkv, rows.size(), shape.q_dim() + 2 * shape.kv_dim());
    expect_shape(name, "out", out, rows.size(), shape.q_dim());
    expect_kv(name, rows, kv, shape);
    expect_adjustment(name, adjustment, shape);
    if constexpr (has_kernel<append_attend_t, B>)
      run_kernel<append_attend_t>(b, out, qkv, kv, rows, adjustment, shape, memory);
    else composed(b, out, qkv, kv, rows, adjustment, shape, memory);
  }

  template <class B, class Memory> static void composed(B& b, mat<scalar_t<B>> out, mat<scalar_t<B>> qkv,
                                                        kv_layer<scalar_t<B>> kv, const token_rows& rows,
                                                        const qkv_adjustment<weight_t<B>>& adjustment,
                                                        const attention_shape& shape, Memory& memory) {
    const auto scope = memory.scope();
    const mat<scalar_t<B>> q = memory.template take<scalar_t<B>>(rows.size(), shape.q_dim());
    adjust(b, qkv, adjustment, shape);
    rope_append(b, q, kv, qkv, rows, shape);
    attend(b, out, q, kv, rows, shape, memory);
  }
};
inline constexpr append_attend_t append_attend{};

}  // namespace moeskip
