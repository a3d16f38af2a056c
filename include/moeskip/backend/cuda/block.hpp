// What phases of cooperating threads share: sums over a block, and sums of products that a warp makes for several rows.
#pragma once

#include <cstdint>

#include "moeskip/base/config.hpp"
#include "moeskip/base/scalar.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip::phase {

/// Σ of v over the block. It uses shared floats [32 place, 32 place + 32) up, and one barrier.
template <class Block> MOESKIP_HD float block_sum(const Block& b, float v, int place, int barrier) {
  float* parts = b.shared() + 32 * place;
  v = b.warp_sum(v);
  if (b.lane() == 0) parts[b.warp()] = v;
  b.sync(barrier);
  float sum = 0;
  for (int w = 0; w < b.warps(); ++w) sum += parts[w];
  return sum;
}
template <class Block> MOESKIP_HD float block_max(const Block& b, float v, int place, int barrier) {
  float* parts = b.shared() + 32 * place;
  v = b.warp_max(v);
  if (b.lane() == 0) parts[b.warp()] = v;
  b.sync(barrier);
  float most = parts[0];
  for (int w = 1; w < b.warps(); ++w) most = parts[w] > most ? parts[w] : most;
  return most;
}

/// Eight neighbours at once: one load of 16 bytes in bf16.
inline constexpr int pack = 8;
template <class W> struct alignas(16) packed { W value[pack]; };

/// out = w[i] … w[i + 7], zero from n on; loads as a pack where w allows it.
template <class W> MOESKIP_HD void load_pack(float (&out)[pack], const W* w, index_t i, index_t n) {
  if (i + pack <= n && reinterpret_cast<std::uintptr_t>(w + i) % alignof(packed<W>) == 0) {
    const packed<W> p = *reinterpret_cast<const packed<W>*>(w + i);
    for (int j = 0; j < pack; ++j) out[j] = to<float>(p.value[j]);
  } else {
    for (int j = 0; j < pack; ++j) out[j] = i + j < n ? to<float>(w[i + j]) : 0.f;
  }
}

/// to[i] … to[i + 7] = value, as far as n; stores as a pack where `to` allows it.
template <class T> MOESKIP_HD void store_pack(T* to, index_t i, index_t n, const float (&value)[pack]) {
  if (i + pack <= n && reinterpret_cast<std::uintptr_t>(to + i) % alignof(packed<T>) == 0) {
    packed<T> p;
    for (int j = 0; j < pack; ++j) p.value[j] = T(value[j]);
    *reinterpret_cast<packed<T>*>(to + i) = p;
  } else {
    for (int j = 0; j < pack && i + j < n; ++j) to[i + j] = T(value[j]);
  }
}

/// Rows of x that share one reading of a row of weights.
inline constexpr int rows_at_once = 8;

/// Rows of a call as lane_products reads them.
struct plain_rows {
  mat<const float> x;
  index_t first;
  MOESKIP_HD void load(float (&out)[pack], int t, index_t i) const { load_pack(out, &x(first + t, 0), i, x.cols()); }
};

/// sum[t] = Σ_i w_i x_t,i of this lane's packs, for t < rows; x.load(out, t, i) gives a pack of row t. A row's sum is
/// made alike whatever the other rows are.
template <class W, class X>
MOESKIP_HD void lane_products(float (&sum)[rows_at_once], const W* w, index_t n, int lane, int rows, const X& x) {
  for (float& s : sum) s = 0;
  for (index_t i = lane * pack; i < n; i += 32 * pack) {
    float weight[pack];
    load_pack(weight, w, i, n);
    for (int t = 0; t < rows_at_once; ++t) {
      if (t >= rows) break;
      float value[pack];
      x.load(value, t, i);
      for (int j = 0; j < pack; ++j) sum[t] += weight[j] * value[j];
    }
  }
}

/// How many of the rows from n on go together.
MOESKIP_HD inline int rows_from(index_t n, index_t end) {
  return int(end - n < rows_at_once ? end - n : index_t(rows_at_once));
}

}  // namespace moeskip::phase
