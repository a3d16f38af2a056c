// Attention of up to 16 rows on the CPU: decode and verify. Keys and values pass once for all rows and heads of a thread, a
// block at a time, with what the softmax needs carried from block to block:
//   m' = max(m, max_j s_j)    l' = l e^(m − m') + Σ_j e^(s_j − m')    y' = y e^(m − m') + Σ_j e^(s_j − m') v_j    out = y / l
//                                                                       Milakov and Gimelshein 2018, arXiv:1805.02867
// Blocks begin at multiples of their size and keys go in order, so a row's bits are its own. The keys of a head lie
// whole rows apart, mostly a power of two: no prefetcher follows them, and few of them fit the first level of cache at a
// time. So a block is asked for while the one before is worked on, and copied together where several queries read it.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/attend.hpp"

namespace moeskip::cpu_kernels {

/// out and q (N, H·d). The work consists of G · N tasks: a group's heads for a row, rows innermost.
template <class A> class few_rows_attention {
 public:
  few_rows_attention(mat<float> out, mat<const float> q, const kv_layer<float>& kv, const token_rows& rows,
                     const attention_shape& s)
      : out_(out), q_(q), kv_(kv), rows_(rows), shared_(s.heads / s.kv_heads), d_(s.head_dim), scale_(s.scale) {}

  void operator()(range tasks) const {
    struct queries;
    struct scores;
    const index_t count = (tasks.last - tasks.first) * shared_;
    query* const all = thread_scratch<queries, query>(count);
    float* const weights = thread_scratch<scores>(count * block_keys);
    int longest = 0;
    for (index_t i = 0; i < count; ++i) {
      const index_t task = tasks.first + i / shared_, n = task % rows_.size();
      const index_t column = (task / rows_.size() * shared_ + i % shared_) * d_;
      all[i] = {&q_(n, column), &out_(n, column), weights + i * block_keys, rows_.position[n] + 1};
      std::fill_n(all[i].out, d_, 0.f);
      longest = std::max(longest, all[i].keys);
    }
    for (int first = 0; first < longest; first += block_keys)
      for (range run{tasks.first, 0}; run.first < tasks.last; run.first = run.last) {
        run.last = end_of_run(run.first, tasks.last);
        attend_block(run, first, all + (run.first - tasks.first) * shared_);
      }
    for (index_t i = 0; i < count; ++i) scale_row<A>(all[i].out, all[i].out, 1.f / all[i].sum, d_);
  }

 private:
  static constexpr int block_keys = 32;

  struct query {
    const float* q;
    float *out, *weights;  // (d), (block_keys)
    int keys;              // that it sees
    float highest = -std::numeric_limits<float>::infinity(), sum = 0, kept = 0;

    int keys_from(int first) const { return std::clamp(keys - first, 0, block_keys); }
  };
  /// Keys, or values, of a block and group: rows `stride` apart.
  struct block {
    const float* data;
    index_t stride;
    const float* row(index_t j) const { return data + j * stride; }
  };

  /// Tasks of one group and sequence.
  index_t end_of_run(index_t first, index_t last) const {
    const index_t N = rows_.size();
    index_t end = first + 1;
    while (end < last && end % N && rows_.slot[end % N] == rows_.slot[first % N]) ++end;
    return end;
  }

  void attend_block(range run, int first, query* q) const {
    const index_t queries = (run.last - run.first) * shared_, n = run.first % rows_.size();
    int count = 0;
    for (index_t i = 0; i < queries; ++i) count = std::max(count, q[i].keys_from(first));
    if (count == 0) return;
    const auto block_of = [&](const cube<float>& from) {
      const block b{&from.plane(rows_.slot[n])(first, run.first / rows_.size() * d_), from.cols()};
      ask_for_next(b);
      return queries > 1 ? together(b, count) : b;
    };
    const block keys = block_of(kv_.keys);
    for (index_t i = 0; i < queries; ++i)
      if (const int seen = q[i].keys_from(first)) score(q[i], keys, seen);
    const block values = block_of(kv_.values);
    for (index_t i = 0; i < queries; ++i)
      if (const int seen = q[i].keys_from(first)) add_values(q[i], values, seen);
  }

  void ask_for_next(const block& b) const {
    for (index_t j = block_keys; j < 2 * block_keys; ++j)
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
