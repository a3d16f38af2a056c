// Rotary positions on the CPU: the angles of all positions up to the largest one seen are kept in a table, since
// computing them (a sine and a cosine in double for each pair) would cost more than the rotation.
#pragma once

#include <map>
#include <tuple>
#include <vector>

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/rope.hpp"

namespace moeskip {

namespace cpu_kernels {

/// cosines (r/2) and then sines (r/2) of each position, rows of r floats. Grows by blocks, so that no token waits long
/// for its row and no row moves.   r rotated elements of a head
class rope_table {
 public:
  static constexpr int block_rows = 1024;  // positions

  /// At least `positions` rows for this shape. The calling thread keeps a table for each shape that it has met.
  static const rope_table& of(const attention_shape& s, int positions) {
    const rope_stretch& r = s.stretch;
    thread_local std::map<std::tuple<float, int, float, float, float, int>, rope_table> tables;
    rope_table& table = tables[{s.rope_theta, s.rotated(), r.factor, r.low, r.high, r.original}];
    while (index_t(table.blocks_.size()) * block_rows < positions) table.append(s);
    return table;
  }

  const float* row(int position) const {
    const std::vector<float>& block = blocks_[std::size_t(position / block_rows)];
    return block.data() + std::size_t(position % block_rows) * (block.size() / block_rows);
  }

 private:
  void append(const attention_shape& s) {
    const std::size_t d = std::size_t(s.rotated()), half = d / 2;
    const int first = int(blocks_.size()) * block_rows;
    std::vector<float> block(std::size_t(block_rows) * d);
    for (std::size_t i = 0; i < half; ++i) {
      const double frequency = rope_frequency(int(i), s);
      for (std::size_t p = 0; p < std::size_t(block_rows); ++p) {
        const rotation r(first + int(p), frequency);
        block[p * d + i] = float(r.cosine), block[p * d + half + i] = float(r.sine);
      }
    }
    blocks_.push_back(std::move(block));
  }
  std::vector<std::vector<float>> blocks_;
};

/// Turns each head of d floats by the angles of `table`; sign −1 turns back. What is not rotated is copied.
template <class A>
void rotate_heads(float* out, const float* in, int heads, const attention_shape& s, const float* table, float sign) {
  const int half = s.rotated() / 2;
  const simd::lanes<A> direction(sign);
  for (int h = 0; h < heads; ++h, out += s.head_dim, in += s.head_dim) {
    std::copy(in + s.rotated(), in + s.head_dim, out + s.rotated());
    for_vectors<A>(half, [&](index_t i, auto n) {
      const auto cosine = load<A>(table + i, n), sine = load<A>(table + half + i, n) * direction;
      const auto a = load<A>(in + i, n), b = load<A>(in + half + i, n);
      store<A>(out + i, a * cosine - b * sine, n);
      store<A>(out + half + i, b * cosine + a * sine, n);
    });
  }
}

inline int last_position(const token_rows& rows) {
  int last = 0;
  for (const int p : rows.position) last = std::max(last, p);
  return last;
}

}  // namespace cpu_kernels

template <> struct kernel<rope_append_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> q, kv_layer<float> kv,
                                                         mat<const float> qkv, const token_rows& rows,
                                                         const attention_shape& s) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const int q_dim = q.data() ? s.q_dim() : 0, kv_dim = s.kv_dim();
    const k::rope_table& table = k::rope_table::of(s, k::last_position(rows) + 1);
    parallel_for(
        rows.size(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n) {
            const int slot = rows.slot[n], position = rows.position[n];
            const float *in = qkv.row(n).data(), *angles = table.row(position);
            if (q_dim) k::rotate_heads<A>(q.row(n).data(), in, s.heads, s, angles, 1.f);
            k::rotate_heads<A>(kv.keys.plane(slot).row(position).data(), in + q_dim, s.kv_heads, s, angles, 1.f);
            std::copy_n(in + q_dim + kv_dim, kv_dim, kv.values.plane(slot).row(position).data());
          }
        },
        64);
  }
};

template <> struct kernel<rope_append_backward_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> dqkv, mat<const float> dq,
                                                         kv_layer<float> dkv, const token_rows& rows,
                                                         const attention_shape& s) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const k::rope_table& table = k::rope_table::of(s, k::last_position(rows) + 1);
    parallel_for(
        rows.size(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n) {
            const int slot = rows.slot[n], position = rows.position[n];
            const float* angles = table.row(position);
            float* out = dqkv.row(n).data();
            k::rotate_heads<A>(out, dq.row(n).data(), s.heads, s, angles, -1.f);
            k::rotate_heads<A>(out + s.q_dim(), dkv.keys.plane(slot).row(position).data(), s.kv_heads, s, angles, -1.f);
            std::copy_n(dkv.values.plane(slot).row(position).data(), s.kv_dim(), out + s.q_dim() + s.kv_dim());
          }
        },
        64);
  }
};

}  // namespace moeskip
