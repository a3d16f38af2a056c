// How many weights a call reads, where rows of one call read a weight once: in a MoE layer those of the union of the
// rows' experts.                                                              MoESD, arXiv:2505.19645, section 3
#pragma once

#include "moeskip/model/config.hpp"
#include "moeskip/parts/moe.hpp"

namespace moeskip {

/// Weights of layer l that rows read together which visit `distinct` experts there.
template <class V> double layer_weights_read(const config<V>& c, int l, double distinct) {
  const sizes& s = c.sizes;
  const double D = s.dim, d = s.head_size();
  const double gate = c.has_gate(l) ? 2 * D : 0;
  const double attention = gate + 2 * D + D * d * (2.0 * s.heads + 2.0 * s.kv_groups()) +  // with both norms
                           double(V::projection::active_weights(s));
  constexpr int matrices = V::mlp::gates + 2;
  const double dense = matrices * D * s.dense_width();
  if (!s.is_moe(l)) return attention + dense;
  const double further = distinct - router::active_experts(c.router);
  return attention + active_moe_weights<V>(s, c.router) + further * matrices * D * s.ffn +
         (V::after_moe::has_dense ? dense + D : 0);
}

/// Weights of the last norm and the unembedding.
inline double head_weights_read(const sizes& s) { return double(s.dim) * (1 + s.vocab); }

}  // namespace moeskip
