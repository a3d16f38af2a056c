// Attention of new rows over the cache: a block makes one head of one row. Its warps take 32 keys each in turn, by
// absolute position, with a running softmax, and are put together in their order: a row's bits do not depend on the
// other rows. Where products are rounded, more than 16 rows take tensor cores instead: attend_tiles.hpp.
#pragma once

#include <cmath>

#include "moeskip/backend/cuda/attend_tiles.hpp"
#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"
#include "moeskip/ops/attend.hpp"

namespace moeskip {

namespace phase {

/// Lanes hold numbers i, i + 32 … of a head.
inline constexpr int most_head_dim = 256, head_parts = most_head_dim / 32;

/// f(part, i) for the numbers of a head (d) that this lane holds. Parts are constants once the loop is unrolled, so
/// that what they index stays in registers.
template <class Block, class F> MOESKIP_HD void each_part(const Block& b, int d, const F& f) {
  for (int part = 0; part < head_parts; ++part)
    if (const int i = b.lane() + 32 * part; i < d) f(part, i);
}

/// x · y over a head (d), by a warp.
template <class Block> MOESKIP_HD float head_product(const Block& b, const float* x, const float* y, int d) {
  float sum = 0;
  for (int i = b.lane(); i < d; i += 32) sum += x[i] * y[i];
  return b.warp_sum(sum);
}

struct attend {
  static constexpr const char* name = "attend";
  static constexpr int barriers = 1;
  static constexpr int warps = 4;
  mat<float> out;
  mat<const float> q;
  kv_layer<float> kv;
  token_rows rows;
  attention_shape s;

  /// Of each warp: the highest score, Σ exp(score − highest), Σ exp(score − highest) value.
  MOESKIP_HD static index_t shared(const attention_shape& s) { return warps * index_t(2 + s.head_dim); }

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = b.block() / s.heads;
    const int h = int(b.block() % s.heads), offset = h * s.kv_heads / s.heads * s.head_dim, d = s.head_dim;
    const int count = rows.position[n] + 1;
    const mat<const float> keys = kv.keys.plane(rows.slot[n]), values = kv.values.plane(rows.slot[n]);
    const float* query = &q(n, h * d);
    float highest = -INFINITY, total = 0, sum[head_parts] = {};
    for (int first = 32 * b.warp(); first < count; first += 32 * b.warps()) {
      const int here = count - first < 32 ? count - first : 32;
      float score = -INFINITY;
      for (int j = 0; j < here; ++j) {
        const float product = head_product(b, query, &keys(first + j, offset), d);
        if (b.lane() == j) score = product * s.scale;
      }
      const float now = b.warp_max(score), before = highest;
      highest = now > highest ? now : highest;
      const float shrink = std::exp(before - highest), p = std::exp(score - highest);
      total = total * shrink + b.warp_sum(p);
      for (float& part : sum) part *= shrink;
      for (int j = 0; j < here; ++j) {
        const float pj = b.warp_at(p, j);
        each_part(b, d, [&](int part, int i) { sum[part] += pj * values(first + j, offset + i); });
      }
    }
    put_together(b, highest, total, sum, &out(n, h * d));
  }

 private:
  template <class Block> MOESKIP_HD void put_together(const Block& b, float highest, float total,
                                                      const float (&sum)[head_parts], float* to) const {
    const int d = s.head_dim;
    float *all_highest = b.shared(), *all_totals = all_highest + warps, *all_sums = all_totals + warps;
    if (b.lane() == 0) all_highest[b.warp()] = highest, all_totals[b.warp()] = total;
    each_part(b, d, [&](int part, int i) { all_sums[b.warp() * d + i] = sum[part]; });
    b.sync(0);
    float most = all_highest[0];  // the first warp has the first key
    for (int w = 1; w < warps; ++w) most = all_highest[w] > most ? all_highest[w] : most;
    float weight[warps], whole = 0;
    for (int w = 0; w < warps; ++w) whole += all_totals[w] * (weight[w] = std::exp(all_highest[w] - most));
    for (int i = b.thread(); i < d; i += b.threads()) {
      float made = 0;
      for (int w = 0; w < warps; ++w) made += weight[w] * all_sums[w * d + i];
      to[i] = made / whole;
    }
  }
};

/// A warp a row and head: dq, log Σ exp of its scores, and mean = Σ_j p_j dp_j, which the keys need.
struct attend_backward_queries {
  static constexpr const char* name = "attend_backward_queries";
  mat<float> dq, log_sum, mean;  // (N, H·d) (N, H) (N, H)
  mat<const float> dout, q;
  kv_layer<float> kv;
  token_rows rows;
  attention_shape s;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t item = b.block() * b.warps() + b.warp();
    if (item >= rows.size() * s.heads) return;
    const index_t n = item / s.heads;
    const int h = int(item % s.heads), offset = h * s.kv_heads / s.heads * s.head_dim, d = s.head_dim;
    const int count = rows.position[n] + 1;
    const mat<const float> keys = kv.keys.plane(rows.slot[n]), values = kv.values.plane(rows.slot[n]);
    const float *query = &q(n, h * d), *dy = &dout(n, h * d);
    float highest = -INFINITY, total = 0, weighted = 0;
    for (int j = 0; j < count; ++j) {
      const float score = head_product(b, query, &keys(j, offset), d) * s.scale;
      const float dp = head_product(b, dy, &values(j, offset), d);
      const float before = highest;
      highest = score > highest ? score : highest;
      const float shrink = std::exp(before - highest), p = std::exp(score - highest);
      total = total * shrink + p;
      weighted = weighted * shrink + p * dp;
    }
    const float lse = highest + std::log(total), average = weighted / total;
    float sum[head_parts] = {};
    for (int j = 0; j < count; ++j) {
      const float p = std::exp(head_product(b, query, &keys(j, offset), d) * s.scale - lse);
      const float dp = head_product(b, dy, &values(j, offset), d), dscore = p * (dp - average) * s.scale;
      each_part(b, d, [&](int part, int i) { sum[part] += dscore * keys(j, offset + i); });
    }
    each_part(b, d, [&](int part, int i) { dq(n, h * d + i) = sum[part]; });
    if (b.lane() == 0) log_sum(n, h) = lse, mean(n, h) = average;
  }
};

/// A warp a key and group of heads: what all rows that see the key send to it and to its value, in the order of the
/// rows.
struct attend_backward_keys {
  static constexpr const char* name = "attend_backward_keys";
  kv_layer<float> dkv;
  mat<const float> dout, q, log_sum, mean;
  kv_layer<float> kv;
  token_rows rows;
  attention_shape s;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t S = kv.keys.extent(0), C = kv.keys.extent(1), item = b.block() * b.warps() + b.warp();
    if (item >= S * C * s.kv_heads) return;
    const int g = int(item % s.kv_heads), d = s.head_dim, share = s.heads / s.kv_heads;
    const index_t j = item / s.kv_heads % C, slot = item / s.kv_heads / C;
    const float *key = &kv.keys.plane(slot)(j, g * d), *value = &kv.values.plane(slot)(j, g * d);
    float dkey[head_parts] = {}, dvalue[head_parts] = {};
    for (index_t n = 0; n < rows.size(); ++n) {
      if (rows.slot[n] != slot || rows.position[n] < j) continue;
      for (int h = g * share; h < (g + 1) * share; ++h) {
        const float *query = &q(n, h * d), *dy = &dout(n, h * d);
        const float p = std::exp(head_product(b, query, key, d) * s.scale - log_sum(n, h));
        const float dscore = p * (head_product(b, dy, value, d) - mean(n, h)) * s.scale;
        each_part(b, d, [&](int part, int i) { dkey[part] += dscore * query[i], dvalue[part] += p * dy[i]; });
      }
    }
    float *to_key = &dkv.keys.plane(slot)(j, g * d), *to_value = &dkv.values.plane(slot)(j, g * d);
    each_part(b, d, [&](int part, int i) { to_key[i] += dkey[part], to_value[i] += dvalue[part]; });
  }
};

}  // namespace phase

namespace detail {

inline void expect_head_dim(const attention_shape& s) {
  MOESKIP_CHECK(config_error, s.head_dim <= phase::most_head_dim, "attention on cuda: expected heads of at most ",
                phase::most_head_dim, " numbers, got ", s.head_dim);
}

/// f(tiled_attention) where tensor cores make this call's attention; whether they do.
template <class Call, class F> bool on_tiles(index_t rows, const attention_shape& s, F&& f) {
  if constexpr (Call::on_tensor_cores) {
    if (rows <= invariant_rows || s.head_dim > most_tiled_head_dim) return false;
    if (s.head_dim <= 64) f(tiled_attention<Call, 64>{});
    else f(tiled_attention<Call, 128>{});
    return true;
  }
  return false;
}

}  // namespace detail

template <> struct kernel<attend_t, on_cuda> {
  template <class B, class Memory> static void run(B&, mat<float> out, mat<const float> q, kv_layer<float> kv,
                                                   const token_rows& rows, const attention_shape& s, Memory&) {
    using call = detail::device_call<attend_t, B>;
    detail::expect_head_dim(s);
    call::seen(out), call::seen(q), call::seen(kv);
    const token_rows listed = call::listed(rows);
    if (detail::on_tiles<call>(rows.size(), s, [&](auto tiled) { tiled.forward(out, {q, kv, listed, s}); })) return;
    call::launch({rows.size() * s.heads, 32 * phase::attend::warps, phase::attend::shared(s)},
                 phase::attend{out, q, kv, listed, s});
  }
};

template <> struct kernel<attend_backward_t, on_cuda> {
  template <class B, class Memory> static void run(B&, mat<float> dq, kv_layer<float> dkv, mat<const float> dout,
                                                   mat<const float> q, kv_layer<float> kv, const token_rows& rows,
                                                   const attention_shape& s, Memory&) {
    using call = detail::device_call<attend_backward_t, B>;
    detail::expect_head_dim(s);
    const auto scope = call::scratch().scope();
    const token_rows listed = call::listed(rows);
    call::seen(dq), call::seen(dkv), call::seen(dout), call::seen(q), call::seen(kv);
    if (detail::on_tiles<call>(rows.size(), s, [&](auto tiled) {
          tiled.backward(dq, dkv, dout, {q, kv, listed, s}, rows);
        }))
      return;
    const mat<float> log_sum = call::scratch().template take<float>(rows.size(), s.heads);
    const mat<float> mean = call::scratch().template take<float>(rows.size(), s.heads);
    call::launch(detail::warp_each(rows.size() * s.heads),
                 phase::attend_backward_queries{dq, log_sum, mean, dout, q, kv, listed, s});
    call::launch(detail::warp_each(kv.keys.extent(0) * kv.keys.extent(1) * s.kv_heads),
                 phase::attend_backward_keys{dkv, dout, q, log_sum, mean, kv, listed, s});
  }
};

}  // namespace moeskip
