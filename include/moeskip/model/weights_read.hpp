// How many weights a call of n rows reads, where rows of one call read a weight once. In a MoE layer these are those of the
// union of the rows' experts:
//   N(n) = E (1 − (1 − K/E)^n)        for rows that choose K of E experts independently and evenly
// Neighbours that share experts read fewer, skewed routing too.                            MoESD, arXiv:2505.19645, section 3
#pragma once

#include <cmath>

#include "moeskip/model/config.hpp"
#include "moeskip/parts/moe.hpp"

namespace moeskip {

/// Distinct experts that n rows choose, if each chooses k of `all` independently and evenly.
inline double independent_union(double all, double k, double rows) { return all * (1 - std::pow(1 - k / all, rows)); }

/// Weights of layer l that `rows` rows read together.
template <class V> double layer_weights_read(const config<V>& c, int l, double rows) {
  const sizes& s = c.sizes;
  const double D = s.dim, d = s.head_size();
  const double attention = 2 * D + D * d * (2.0 * s.heads + 2.0 * s.kv_groups());  // with both norms
  if (!s.is_moe(l)) return attention + 3 * D * s.dense_width();
  const double k = router::active_experts(c.router);
  const double further = independent_union(s.experts, k, rows) - k;
  return attention + active_moe_weights<V>(s, c.router) + further * 3 * D * s.ffn;
}

/// Weights of the last norm and the unembedding.
inline double head_weights_read(const sizes& s) { return double(s.dim) * (1 + s.vocab); }

}  // namespace moeskip
