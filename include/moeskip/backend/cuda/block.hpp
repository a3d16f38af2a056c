// What phases of cooperating threads share: sums over a block, and sums of products that a warp makes for several rows.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "moeskip/base/config.hpp"
#include "moeskip/base/scalar.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip::phase {

/// Σ of each v over the block, in its own type. They use the shared T [32 place, 32 place + 32 N), and one barrier.
template <int N, class T, class Block> MOESKIP_HD void block_sums(const Block& b, T (&v)[N], int place, int barrier) {
  T* parts = reinterpret_cast<T*>(b.shared()) + 32 * place;
  for (int i = 0; i < N; ++i) {
    v[i] = b.warp_sum(v[i]);
    if (b.lane() == 0) parts[32 * i + b.warp()] = v[i];
  }
  b.sync(barrier);
  for (int i = 0; i < N; ++i) {
    v[i] = 0;
    for (int w = 0; w < b.warps(); ++w) v[i] += parts[32 * i + w];
  }
}
template <class T, class Block> MOESKIP_HD T block_sum(const Block& b, T v, int place, int barrier) {
  T sum[1] = {v};
  block_sums(b, sum, place, barrier);
  return sum[0];
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

/// Σ of v over the lanes of a warp up to this one, of whole numbers that floats hold exactly.
template <class Block> MOESKIP_HD int lanes_up_to(const Block& b, int v) {
  float sum = float(v);
  for (int step = 1; step < 32; step *= 2) {
    const float more = b.warp_at(sum, b.lane() < step ? b.lane() : b.lane() - step);
    sum += b.lane() < step ? 0.f : more;
  }
  return int(sum);
}

/// Eight neighbours at once: one load of 16 bytes in bf16. Where all are floats, four are.
inline constexpr int pack = 8, quad = 4;
template <class W, int Count = pack> struct alignas(Count * sizeof(W) < 16 ? Count * sizeof(W) : 16) packed {
  W value[Count];
};

/// w[i] … w[i + Count - 1] as they are stored, zero from n on; one load where w allows it.
template <int Count = pack, class W> MOESKIP_HD packed<W, Count> stored_pack(const W* w, index_t i, index_t n) {
  using P = packed<W, Count>;
  if (i + Count <= n && reinterpret_cast<std::uintptr_t>(w + i) % alignof(P) == 0)
    return *reinterpret_cast<const P*>(w + i);
  P p;
  for (int j = 0; j < Count; ++j) p.value[j] = i + j < n ? w[i + j] : W(0.f);
  return p;
}
/// The same as numbers.
template <int Count, class W> MOESKIP_HD void load_pack(float (&out)[Count], const W* w, index_t i, index_t n) {
  const packed<W, Count> p = stored_pack<Count>(w, i, n);
  for (int j = 0; j < Count; ++j) out[j] = to<float>(p.value[j]);
}

/// to[i] … to[i + Count - 1] = value, as far as n; stores as a pack where `to` allows it.
template <class T, int Count> MOESKIP_HD void store_pack(T* to, index_t i, index_t n, const float (&value)[Count]) {
  using P = packed<T, Count>;
  if (i + Count <= n && reinterpret_cast<std::uintptr_t>(to + i) % alignof(P) == 0) {
    P p;
    for (int j = 0; j < Count; ++j) p.value[j] = T(value[j]);
    *reinterpret_cast<P*>(to + i) = p;
  } else {
    for (int j = 0; j < Count && i + j < n; ++j) to[i + j] = T(value[j]);
  }
}

/// Rows of x that share one reading of a row of weights.
inline constexpr int rows_at_once = 8;

/// Rows of a call as lane_products reads them.
struct plain_rows {
  static constexpr int together = 2;  // packs; four would take too many registers
  mat<const float> x;
  index_t first;
  MOESKIP_HD void load(float (&out)[pack], int t, index_t i) const { load_pack(out, &x(first + t, 0), i, x.cols()); }
};

/// f(0) … f(Count - 1), of constants: what they index stays in registers, where a compiler might keep a loop.
template <int Count, class F> MOESKIP_HD void unrolled(const F& f) {
  [&]<int... I>(std::integer_sequence<int, I...>) { (f(std::integral_constant<int, I>{}), ...); }
  (std::make_integer_sequence<int, Count>{});
}

/// Packs of a row of weights that a lane has asked for and not used yet: memory that waits for sums is idle.
template <class W, int Count> struct packs_ahead {
  static constexpr int step = 32 * pack;  // from a lane's pack to its next one
  packed<W> weight[Count];
  /// Those of the row w (n) from `first` on; w null: none.
  MOESKIP_HD void ask(const W* w, int first, int n) {
    for (int p = 0; p < Count; ++p) weight[p] = stored_pack(w, w ? first + p * step : n, n);
  }
};
/// So many packs are asked for at a time, of all the rows that a warp reads at once.
template <class W> inline constexpr int packs_at_once = sizeof(W) == 2 ? 4 : 2;

/// sum[r][t] = Σ_i w_r,i x_t,i of this lane's packs, for t < rows; x.load(out, t, i) gives a pack of row t. A row's sum is
/// made alike whatever the other rows are, pack after pack. While some packs are multiplied, the next are on their way.
template <int Rows, class W, class X> MOESKIP_HD void lane_products(float (&sum)[Rows][rows_at_once],
                                                                    const W* const (&w)[Rows], int n, int lane,
                                                                    int rows, const X& x) {
  constexpr int count = packs_at_once<W> / Rows, together = count < X::together ? count : X::together;
  using ahead = packs_ahead<W, count>;
  for (auto& of_row : sum)
    for (float& s : of_row) s = 0;
  ahead next[Rows];
  unrolled<Rows>([&](auto r) { next[r].ask(w[r], lane * pack, n); });
  for (int first = lane * pack; first < n; first += count * ahead::step) {
    ahead now[Rows];
    unrolled<Rows>([&](auto r) { now[r] = next[r]; });
    if (const int after = first + count * ahead::step; after < n)
      unrolled<Rows>([&](auto r) { next[r].ask(w[r], after, n); });
    unrolled<rows_at_once>([&](auto t) {
      if (t >= rows) return;
      unrolled<count / together>([&](auto some) {
        const int i = first + some * together * ahead::step;
        if (i >= n) return;
        float value[together][pack];
        unrolled<together>([&](auto p) { x.load(value[p], t, i + p * ahead::step); });
        unrolled<together>([&](auto p) {
          if (i + p * ahead::step >= n) return;
          unrolled<Rows>([&](auto r) {
            for (int j = 0; j < pack; ++j)
              sum[r][t] += to<float>(now[r].weight[some * together + p].value[j]) * value[p][j];
          });
        });
      });
    });
  }
}

/// made(n, sums (Rows)) for the rows n of [first, end), by one lane of a warp: Σ_i w_r,i x_n,i. The w (I) are read once
/// for eight rows; from(n): those from n on, as lane_products takes them.
template <int Rows, class W, class Block, class From, class Made>
MOESKIP_HD void products_of_rows(const Block& b, const W* const (&w)[Rows], int I, index_t first, index_t end,
                                 const From& from, const Made& made) {
  for (index_t n = first; n < end; n += rows_at_once) {
    const int rows = int(end - n < rows_at_once ? end - n : index_t(rows_at_once));
    float sum[Rows][rows_at_once];
    lane_products(sum, w, I, b.lane(), rows, from(n));
    unrolled<rows_at_once>([&](auto t) {
      if (t >= rows) return;
      float of_row[Rows];
      unrolled<Rows>([&](auto r) { of_row[r] = b.warp_sum(sum[r][t]); });
      if (b.lane() == 0) made(n + t, of_row);
    });
  }
}

}  // namespace moeskip::phase
