// Attention of up to 16 rows on the CPU: decode and verify. Keys and values are read in blocks, once for all rows and
// heads of a thread that see them, and what the softmax needs is carried from block to block:
//   m' = max(m, max_j s_j)    l' = l e^(m − m') + Σ_j e^(s_j − m')    y' = y e^(m − m') + Σ_j e^(s_j − m') v_j
//   out = y / l at the end
//                                                                       Milakov and Gimelshein 2018, arXiv:1805.02867
// Blocks begin at multiples of their size and keys go in order, so a row's bits are its own. The keys of a head lie
// whole rows apart, mostly a power of two: hardware prefetchers do not follow, and they fall into few sets of the first
// level of cache. So a block is prefetched while others are worked on, and copied together where several queries read
// it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/attend.hpp"

namespace moeskip::cpu_kernels {

/// out and q (N, H·d). The work consists of H · N tasks, a row and a head each: the heads of a group for all rows, then
/// those of the next group.
template <class A> class few_rows_attention {
 public:
  few_rows_attention(mat<float> out, mat<const float> q, const kv_layer<float>& kv, const token_rows& rows,
                     const attention_shape& s)
      : out_(out), q_(q), kv_(kv), rows_(rows), shared_(s.heads / s.kv_heads), d_(s.head_dim), scale_(s.scale) {}

  void operator()(range tasks) const {
    struct queries;
    struct scores;
    const index_t count = tasks.last - tasks.first;
    query* const all = thread_scratch<queries, query>(count);
    float* const weights = thread_scratch<scores>(count * block_keys);
    for (index_t i = 0; i < count; ++i) {
      const place at = place_of(tasks.first + i);
      const index_t column = (at.group * shared_ + at.head) * d_;
      all[i] = {&q_(at.row, column), &out_(at.row, column), weights + i * block_keys, rows_.position[at.row] + 1};
      std::fill_n(all[i].out, d_, 0.f);
    }
    // As many runs side by side as leave their next blocks in the second level of cache until they are read.
    const index_t side_by_side =
        std::max<index_t>(1, prefetched_bytes / (2 * block_keys * d_ * index_t(sizeof(float))));
    for (index_t begin = tasks.first, end; begin < tasks.last; begin = end) {
      end = begin;
      for (index_t i = 0; i < side_by_side && end < tasks.last; ++i) end = end_of_run(end, tasks.last);
      int longest = 0;
      for (index_t i = begin; i < end; ++i) longest = std::max(longest, all[i - tasks.first].keys);
      for (int first = 0; first < longest; first += block_keys)
        for (range run{begin, 0}; run.first < end; run.first = run.last) {
          run.last = end_of_run(run.first, end);
          attend_block(run, first, all + (run.first - tasks.first));
        }
    }
    for (index_t i = 0; i < count; ++i) scale_row<A>(all[i].out, all[i].out, 1.f / all[i].sum, d_);
  }

 private:
  static constexpr int block_keys = 32;
  static constexpr index_t prefetched_bytes = 256 << 10;

  struct place {
    index_t group, row, head;  // the head within its group
  };
  place place_of(index_t task) const {
    const index_t N = rows_.size(), row = task / shared_;
    return {row / N, row % N, task % shared_};
  }

  struct query {
    const float* q;
    float *out, *weights;  // (d), (block_keys)
    int keys;              // that it sees
    float highest = std::numeric_limits<float>::lowest(), sum = 0, kept = 0;

    int keys_from(int first) const { return std::clamp(keys - first, 0, block_keys); }
  };
  /// Keys, or values, of a block and group: rows `stride` apart.
  struct block {
    const float* data;
    index_t stride;
    const float* row(index_t j) const { return data + j * stride; }
  };

  /// Where the tasks of one group and sequence that begin with `first` end.
  index_t end_of_run(index_t first, index_t last) const {
    const place at = place_of(first);
    index_t row = at.row + 1;
    while (row < rows_.size() && rows_.slot[row] == rows_.slot[at.row]) ++row;
    return std::min(last, (at.group * rows_.size() + row) * shared_);
  }

  void attend_block(range run, int first, query* q) const {
    const index_t queries = run.last - run.first;
    const place at = place_of(run.first);
    int keys_left = 0;
    for (index_t i = 0; i < queries; ++i) keys_left = std::max(keys_left, q[i].keys - first);
    if (keys_left <= 0) return;
    const int count = std::min(keys_left, block_keys), next = std::min(keys_left - count, block_keys);
    const auto block_of = [&](const cube<float>& from) {
      const block b{&from.plane(rows_.slot[at.row])(first, at.group * d_), from.cols()};
      prefetch_next(b, next);
      return queries > 1 ? together(b, count) : b;
    };
    const block keys = block_of(kv_.keys);
    for (index_t i = 0; i < queries; ++i)
      if (const int seen = q[i].keys_from(first)) score(q[i], keys, seen);
    const block values = block_of(kv_.values);  // copied over the keys
    for (index_t i = 0; i < queries; ++i)
      if (const int seen = q[i].keys_from(first)) add_values(q[i], values, seen);
  }

  void prefetch_next(const block& b, int count) const {
    for (index_t j = block_keys; j < block_keys + count; ++j)
      for (index_t i = 0; i < d_; i += index_t(alignment / sizeof(float)))
        simd::prefetch<simd::cache::second>(b.data, j * b.stride + i);
  }
  block together(const block& b, int count) const {
    struct copied;
    float* const to = thread_scratch<copied>(block_keys * d_);
    for (int j = 0; j < count; ++j) std::copy_n(b.row(j), d_, to + j * d_);
    return {to, d_};
  }

  /// weights = e^(s − m'), and what is carried.
  void score(query& q, const block& keys, int count) const {
    int j = 0;
    for (; j + 4 <= count; j += 4) {
      const float *ka = keys.row(j), *kb = keys.row(j + 1), *kc = keys.row(j + 2), *kd = keys.row(j + 3);
      simd::lanes<A> a = simd::zero<A>(), b = a, c = a, d = a;
      for_vectors<A>(d_, [&](index_t i, auto n) {
        const simd::lanes<A> x = load<A>(q.q + i, n);
        a = simd::fma<A>(x, load<A>(ka + i, n), a), b = simd::fma<A>(x, load<A>(kb + i, n), b);
        c = simd::fma<A>(x, load<A>(kc + i, n), c), d = simd::fma<A>(x, load<A>(kd + i, n), d);
      });
      simd::store(q.weights + j, simd::reduce_add<A>(a, b, c, d) * simd::quad<A>(scale_));
    }
    for (; j < count; ++j) q.weights[j] = dot<A>(q.q, keys.row(j), d_) * scale_;
    const float highest = std::max(q.highest, row_max<A>(q.weights, count));
    q.kept = std::exp(q.highest - highest), q.highest = highest;
    q.sum = q.sum * q.kept + exp_row<A>(q.weights, q.weights, highest, 1.f, count);
  }

  void add_values(const query& q, const block& values, int count) const {
    index_t i = 0;
    const auto columns = [&](auto vectors) {
      for (constexpr index_t M = decltype(vectors)::value * simd::width<A>; i + M <= d_; i += M)
        add_columns<decltype(vectors)::value>(q, values, count, i);
    };
    columns(std::integral_constant<int, 4>{}), columns(std::integral_constant<int, 2>{});
    columns(std::integral_constant<int, 1>{});
    if (i == d_) return;
    simd::lanes<A> sum = simd::load_part<A>(q.out + i, d_ - i) * simd::lanes<A>(q.kept);
    for (int j = 0; j < count; ++j)
      sum = simd::fma<A>(simd::lanes<A>(q.weights[j]), simd::load_part<A>(values.row(j) + i, d_ - i), sum);
    simd::store_part<A>(q.out + i, sum, d_ - i);
  }
  /// `vectors` of them from column i on, in registers.
  template <int vectors> static void add_columns(const query& q, const block& values, int count, index_t i) {
    constexpr index_t N = simd::width<A>;
    simd::lanes<A> sum[vectors];
    for (int m = 0; m < vectors; ++m) sum[m] = simd::load<A>(q.out + i + m * N) * simd::lanes<A>(q.kept);
    for (int j = 0; j < count; ++j)
      for (int m = 0; m < vectors; ++m)
        sum[m] = simd::fma<A>(simd::lanes<A>(q.weights[j]), simd::load<A>(values.row(j) + i + m * N), sum[m]);
    for (int m = 0; m < vectors; ++m) simd::store(q.out + i + m * N, sum[m]);
  }

  mat<float> out_;
  mat<const float> q_;
  const kv_layer<float>& kv_;
  const token_rows& rows_;
  index_t shared_, d_;  // heads of a group, elements of a head
  float scale_;
};

}  // namespace moeskip::cpu_kernels
