// The arithmetic of a training step: what a training rate is measured against.
#pragma once

#include "moeskip/train/loss.hpp"

namespace moeskip {

/// FLOP (two per multiply-add) of the matrix products and of causal attention that one micro-batch executes:
/// each once forward and twice backward. Sequences that layer dropout took out of a layer are not counted,
/// nor is what is done twice to save memory, nor anything elementwise. Assumes that no assignment is dropped
/// over capacity.
template <class V, class B> double training_flops(const model<V, B>& m, int sequences, int length,
                                                  const exit_weights& weights, seed masks, std::uint64_t step,
                                                  double progress = 1) {
  const sizes& s = m.sizes();
  const double D = s.dim, d = s.head_size(), C = length;
  const double attention = D * d * (2 * s.heads + 2 * s.kv_groups()) + s.heads * d * (C + 1);  // mean over positions
  double products = 0;                                                                         // multiply-adds, forward
  for (int l = 0; l < s.layers; ++l) {
    const double dense = (V::mlp::gates + 2) * D * s.dense_width();
    const double moe = active_moe_weights<V>(s, m.configuration().router) + (V::after_moe::has_dense ? dense : 0);
    for (int i = 0; i < sequences; ++i)
      if (m.participates(l, i, masks, step, progress)) products += C * (attention + (s.is_moe(l) ? moe : dense));
  }
  for (int e = 1; e <= s.layers; ++e) {
    if (!(weights[std::size_t(e)] > 0)) continue;
    const auto head = m.weights().head(e);
    products += sequences * C * double(head.projection.size() + head.down.size() + head.up.size());
  }
  return 2 * 3 * products;
}

}  // namespace moeskip
