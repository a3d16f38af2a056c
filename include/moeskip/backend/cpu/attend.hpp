// Attention on the CPU. Up to 16 rows: attend_few.hpp. More rows: 64 queries of one sequence and head at a time, as two
// matrix products around a softmax; the scores never leave the cache.
#pragma once

#include "moeskip/backend/cpu/attend_few.hpp"
#include "moeskip/backend/cpu/linear.hpp"
#include "moeskip/ops/attend.hpp"

namespace moeskip {

namespace cpu_kernels {

inline constexpr index_t query_tile = 64;

/// Rows [first, last) of a call that belong to one sequence.
struct sequence_rows {
  index_t first, last;
};

/// The sequences of a call: rows of one slot stand together. Fills `runs` (room for one per row), returns how many.
inline index_t split_sequences(const token_rows& rows, sequence_rows* runs) {
  index_t count = 0;
  for (index_t n = 0; n < rows.size(); ++n) {
    if (n == 0 || rows.slot[n] != rows.slot[n - 1]) runs[count++] = {n, n};
    runs[count - 1].last = n + 1;
  }
  return count;
}

/// A tile of queries of one head against the keys of its sequence.
struct attention_tile {
  index_t first, count;  // rows of the call
  index_t keys;          // the longest row's number of keys
  int q_offset, kv_offset;
};

/// p (count, keys) = softmax of the tile's scores; 0 where a row may not look.
template <class A, class P> void tile_probabilities(float* p, const attention_tile& t, mat<const float> q,
                                                    mat<const float> keys, const token_rows& rows,
                                                    const attention_shape& s) {
  const factor<float> a{q.row(t.first).data() + t.q_offset, q.cols()};
  const factor<float> b{keys.data() + t.kv_offset, keys.cols(), true};
  gemm<A, P>(product{.data = p, .stride = t.keys, .alpha = s.scale}, a, b, {0, t.count, 0, t.keys}, s.head_dim);
  for (index_t r = 0; r < t.count; ++r) {
    float* row = p + r * t.keys;
    const index_t visible = rows.position[t.first + r] + 1;
    const float sum = exp_row<A>(row, row, row_max<A>(row, visible), 1.f, visible);
    scale_row<A>(row, row, 1.f / sum, visible);
    std::fill(row + visible, row + t.keys, 0.f);
  }
}

/// Calls body for each tile of head h in a sequence.
template <class Body>
void for_tiles(const sequence_rows& run, int h, const token_rows& rows, const attention_shape& s, Body&& body) {
  for (index_t first = run.first; first < run.last; first += query_tile) {
    attention_tile t{first, std::min(query_tile, run.last - first), 0, h * s.head_dim,
                     h * s.kv_heads / s.heads * s.head_dim};
    for (index_t n = first; n < first + t.count; ++n) t.keys = std::max<index_t>(t.keys, rows.position[n] + 1);
    body(t);
  }
}

}  // namespace cpu_kernels

template <> struct kernel<attend_t, on_cpu> {
  template <class W, class Isa, class P, class Memory>
  static void run(cpu<W, Isa, P>&, mat<float> out, mat<const float> q, kv_layer<float> kv, const token_rows& rows,
                  const attention_shape& s, Memory& memory) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    if (rows.size() <= k::max_matvec_tokens) return few<A>(out, q, kv, rows, s);
    const auto scope = memory.scope();
    vec<k::sequence_rows> runs = memory.template take<k::sequence_rows>(rows.size());
    const index_t count = k::split_sequences(rows, runs.data());
    parallel_tasks(count * s.heads, [&](index_t task) {
      const k::sequence_rows run = runs[task / s.heads];
      const int slot = rows.slot[run.first];
      k::for_tiles(run, int(task % s.heads), rows, s, [&](const k::attention_tile& t) {
        struct scores;
        float* p = k::thread_scratch<scores>(k::query_tile * t.keys);
        k::tile_probabilities<A, P>(p, t, q, kv.keys.plane(slot), rows, s);
        k::gemm<A, P>(k::product{.data = &out(t.first, t.q_offset), .stride = out.cols()}, k::factor<float>{p, t.keys},
                      k::factor<float>{kv.values.plane(slot).data() + t.kv_offset, kv.values.cols()},
                      {0, t.count, 0, s.head_dim}, t.keys);
      });
    });
  }

 private:
  /// Decode and verify: a row's bits do not depend on the rows beside it.
  template <class A> static void few(mat<float> out, mat<const float> q, kv_layer<float> kv, const token_rows& rows,
                                     const attention_shape& s) {
    namespace k = cpu_kernels;
    index_t work = 0;
    for (const int p : rows.position) work += index_t(p + 1) * s.q_dim();
    // Heads of a group stay together as long as there are enough groups for the threads: they read the same keys.
    const index_t tasks = rows.size() * s.heads, groups = rows.size() * s.kv_heads;
    parallel_for(
        tasks,
        [&](index_t first, index_t last) {
          k::few_rows_attention<A>(out, q, kv, rows, s)({first, last});
        },
        work < 16384 ? tasks + 1 : 0, groups >= thread_count() ? s.heads / s.kv_heads : 1);
  }
};

template <> struct kernel<attend_backward_t, on_cpu> {
  template <class W, class Isa, class P, class Memory>
  static void run(cpu<W, Isa, P>&, mat<float> dq, kv_layer<float> dkv, mat<const float> dout, mat<const float> q,
                  kv_layer<float> kv, const token_rows& rows, const attention_shape& s, Memory& memory) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const auto scope = memory.scope();
    vec<k::sequence_rows> runs = memory.template take<k::sequence_rows>(rows.size());
    const index_t count = k::split_sequences(rows, runs.data());
    // One task owns the keys of a sequence and group: its heads add to their gradients in order.
    parallel_tasks(count * s.kv_heads, [&](index_t task) {
      const k::sequence_rows run = runs[task / s.kv_heads];
      const int group = int(task % s.kv_heads), shared = s.heads / s.kv_heads;
      for (int h = group * shared; h < (group + 1) * shared; ++h)
        k::for_tiles(run, h, rows, s, [&](const k::attention_tile& t) {
          tile<A, P>(t, rows.slot[run.first], dq, dkv, dout, q, kv, rows, s);
        });
    });
  }

 private:
  template <class A, class P> static void tile(const cpu_kernels::attention_tile& t, int slot, mat<float> dq,
                                               kv_layer<float> dkv, mat<const float> dout, mat<const float> q,
                                               kv_layer<float> kv, const token_rows& rows, const attention_shape& s) {
    namespace k = cpu_kernels;
    using factor = k::factor<float>;
    struct scores;
    float* p = k::thread_scratch<scores>(2 * k::query_tile * t.keys);
    float* dp = p + k::query_tile * t.keys;
    const index_t kv_dim = kv.keys.cols(), q_dim = q.cols();
    const float *keys = kv.keys.plane(slot).data() + t.kv_offset, *values = kv.values.plane(slot).data() + t.kv_offset;
    const factor queries{&q(t.first, t.q_offset), q_dim}, dy{&dout(t.first, t.q_offset), q_dim};
    k::tile_probabilities<A, P>(p, t, q, kv.keys.plane(slot), rows, s);
    // dvalues += pᵀ dy;  dp = dy valuesᵀ
    const auto transposed = [](factor f) { return f.transposed = true, f; };
    const factor probabilities{p, t.keys}, scores_gradient{dp, t.keys};
    k::gemm<A, P>(k::product{.data = dkv.values.plane(slot).data() + t.kv_offset, .stride = kv_dim, .accumulate = true},
                  transposed(probabilities), dy, {0, t.keys, 0, s.head_dim}, t.count);
    k::gemm<A, P>(k::product{.data = dp, .stride = t.keys}, dy, transposed(factor{values, kv_dim}),
                  {0, t.count, 0, t.keys}, s.head_dim);
    for (index_t r = 0; r < t.count; ++r) {  // through the softmax: p (dp − Σ p dp) · scale
      float *pr = p + r * t.keys, *dr = dp + r * t.keys;
      const simd::lanes<A> mean(k::dot<A>(pr, dr, t.keys)), scale(s.scale);
      k::for_vectors<A>(t.keys, [&](index_t i, auto n) {
        k::store<A>(dr + i, k::load<A>(pr + i, n) * (k::load<A>(dr + i, n) - mean) * scale, n);
      });
    }
    k::gemm<A, P>(k::product{.data = &dq(t.first, t.q_offset), .stride = q_dim}, scores_gradient, factor{keys, kv_dim},
                  {0, t.count, 0, s.head_dim}, t.keys);
    k::gemm<A, P>(k::product{.data = dkv.keys.plane(slot).data() + t.kv_offset, .stride = kv_dim, .accumulate = true},
                  transposed(scores_gradient), queries, {0, t.keys, 0, s.head_dim}, t.count);
  }
};

}  // namespace moeskip
