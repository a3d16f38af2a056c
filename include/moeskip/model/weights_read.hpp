// How many weights a call reads, where rows of one call read a weight once: in a MoE layer those of the union of the
// rows' experts.                                                              MoESD, arXiv:2505.19645, section 3
#pragma once

#include "moeskip/model/config.hpp"
#include "moeskip/parts/moe.hpp"

namespace moeskip {

/// Weights of a layer by what reads them; each once a call, an expert's if somebody visits it.
struct layer_reads {
  double layer_gate = 0, attention = 0, router = 0, shared = 0, dense = 0;
  double expert = 0;  // one of those that are chosen

  /// Read together by rows that visit `distinct` experts.
  double all(double distinct) const { return layer_gate + attention + router + shared + dense + distinct * expert; }
};

/// Of layer l. Each part has its own norm.
template <class V> layer_reads layer_reads_of(const config<V>& c, int l) {
  const sizes& s = c.sizes;
  const double D = s.dim, d = s.head_size(), matrices = V::mlp::gates + 2;
  layer_reads r;
  if (c.has_gate(l)) r.layer_gate = 2 * D;
  r.attention = D + D * d * (2.0 * s.heads + 2.0 * s.kv_groups()) + double(V::projection::active_weights(s));
  if (!s.is_moe(l) || V::after_moe::has_dense) r.dense = D + matrices * D * s.dense_width();
  if (!s.is_moe(l)) return r;
  r.router = D + D * s.experts * logits_per_expert<typename V::router>;
  r.shared = double(V::shared_expert::active_weights(s));
  r.expert = matrices * D * s.ffn;
  return r;
}

/// Of a layer's keys and values, with the norm before them.
inline double kv_weights_read(const sizes& s) { return s.dim * (1 + 2.0 * s.kv_groups() * s.head_size()); }
/// Weights that rows read together which all pass layer l by.
template <class V> double passing_weights_read(const config<V>& c, int l) {
  return layer_reads_of(c, l).layer_gate + kv_weights_read(c.sizes);
}

/// Weights of layer l that rows read together which visit `distinct` experts there.
template <class V> double layer_weights_read(const config<V>& c, int l, double distinct) {
  return layer_reads_of(c, l).all(distinct);
}

/// Weights of the last norm and the unembedding.
inline double head_weights_read(const sizes& s) { return double(s.dim) * (1 + s.vocab); }

}  // namespace moeskip
