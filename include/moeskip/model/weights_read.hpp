// How many weights a call reads, where rows of one call read a weight once: in a MoE layer those of the union of the
// rows' experts.                                                              MoESD, arXiv:2505.19645, section 3
#pragma once

#include "moeskip/model/config.hpp"
#include "moeskip/parts/moe.hpp"

namespace moeskip {

/// Of a layer's keys and values, with the norm before them.
inline double kv_weights_read(const sizes& s) { return s.dim * (1 + 2.0 * s.kv_groups() * s.head_size()); }
/// Of a layer's gate; 0 where it has none.
template <class V> double gate_weights_read(const config<V>& c, int l) { return c.has_gate(l) ? 2.0 * c.sizes.dim : 0; }
/// Weights that rows read together which all pass layer l by.
template <class V> double passing_weights_read(const config<V>& c, int l) {
  return gate_weights_read(c, l) + kv_weights_read(c.sizes);
}

/// Weights of layer l that rows read together which visit `distinct` experts there.
template <class V> double layer_weights_read(const config<V>& c, int l, double distinct) {
  const sizes& s = c.sizes;
  const double D = s.dim, d = s.head_size();
  const double attention = gate_weights_read(c, l) + 2 * D +
                           D * d * (2.0 * s.heads + 2.0 * s.kv_groups()) +  // with both norms
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
