// The matrix product of training and prefill, on the calling thread, for a tile of C that the caller chose:
//   C(m,n) = [C(m,n) +] alpha * sum_k A(m,k) B(k,n)      summed in f32; A and B stored as f32 or bf16
// A and B are copied ("packed") block by block into panels (panels.hpp) that the micro-kernel reads in order; it keeps
// a tile of C in registers (14 rows by 2 vectors with 32 registers, 6 by 2 with 16). Factors enter the products as P:
// f32, or rounded to bf16, which with AVX512-BF16 takes half as long. After Goto and van de Geijn, "Anatomy of
// High-Performance Matrix Multiplication", ACM TOMS 34(3), 2008. The sum runs over k in ascending order, cut at
// multiples of the depth of a block: the bits of C(m,n) depend on k alone, not on which tile of C, of which size, the
// call is given.
//   m, n rows and columns of C · k summed · M_R, N_R the tile in registers
#pragma once

#include <algorithm>

#include "moeskip/backend/cpu/panels.hpp"
#include "moeskip/backend/cpu/scratch.hpp"

namespace moeskip::cpu_kernels {

/// C and what happens to the sums on their way into it.
struct product {
  float* data;  // (m, n)
  index_t stride;
  bool accumulate = false;  // C += …, else C = …
  float alpha = 1.0f;
};

/// Part of C: rows m.first … m.last-1, columns n.first … n.last-1.
struct part {
  index_t m_first, m_last, n_first, n_last;
};

namespace detail {

template <class Arch> struct gemm_tile {
  static constexpr index_t N = simd::width<Arch>, vectors = 2, n = vectors * N;
  // In registers: m * vectors sums, `vectors` of B, one of A.
  static constexpr index_t m = simd::registers<Arch> == 32 ? 14 : 6;
  // Blocks, in steps of the sum: a panel of B (depth by n) stays in the first level of cache, a block of A (height by
  // depth) and one of B (depth by breadth) in the second: 140 KB and 512 KB with AVX-512.
  static constexpr index_t depth = 256, height = 10 * m, breadth = 16 * n;
};

/// The same in elements of k.
template <class Arch, class P> inline constexpr index_t block_depth = gemm_tile<Arch>::depth* cell<Arch, P>::terms;

template <class Arch> struct gemm_blocks;  // names the scratch

// ---- blocks ----

/// Rows m … m_end-1 of A, panels of M_R rows, the last one of as many as are left, made even.
template <class Arch, class Cell, class T>
void pack_block_a(Cell* block, const factor<T>& a, index_t m, index_t m_end, index_t k, index_t depth, index_t steps) {
  constexpr index_t M = gemm_tile<Arch>::m;
  for (index_t i = m; i < m_end; i += M, block += M * steps) {
    const index_t used = std::min(M, m_end - i), width = round_up(used, 2);
    if (a.transposed) pack_along<Arch>(block, width, a, i, used, k, depth);
    else pack_across<Arch>(block, width, a, i, used, k, depth);
  }
}

/// Columns n … n+used-1 of B, as one panel of two vectors, or of one where that is enough.
template <class Arch, class Cell, class T>
void pack_panel_b(Cell* panel, const factor<T>& b, index_t n, index_t used, index_t k, index_t depth) {
  const index_t width = round_up(used, simd::width<Arch>);
  if (b.transposed) pack_across<Arch>(panel, width, b, n, used, k, depth);
  else pack_along<Arch>(panel, width, b, n, used, k, depth);
}

/// Slice i of `slices` of what the next pack_panel_b will read. Issued between micro-kernels it hides
/// memory's latency: with weights never seen before the product takes 4 (bf16) to 10 % (f32) longer than with
/// cached ones, without this 24 to 35 % (64 by 512 by 1024, one Zen 5 core, 2026-11-23).
template <class Arch, class T> void prefetch_panel_b(const factor<T>& b, index_t n, index_t used, index_t k,
                                                     index_t depth, index_t i, index_t slices) {
  const index_t first = b.transposed ? n : k, count = b.transposed ? used : depth;    // stored rows
  const index_t column = b.transposed ? k : n, length = b.transposed ? depth : used;  // elements of each
  constexpr index_t line = 64 / index_t(sizeof(T));
  for (index_t r = first + i * count / slices; r < first + (i + 1) * count / slices; ++r)
    for (index_t j = 0; j < length; j += line) simd::prefetch<simd::cache::second>(b.row(r) + column, j);
}

// ---- the micro-kernel ----

/// C(rows m … m+used-1, columns n … n+columns-1) from a panel of A (steps, M) and one of B (steps, V vectors).
template <class Arch, class P, int M, int V>
void gemm_micro(const product& c, index_t m, index_t used, index_t n, index_t columns, const cell_of<Arch, P>* a,
                const cell_of<Arch, P>* b, index_t steps, bool accumulate) {
  using element = cell<Arch, P>;
  constexpr index_t N = simd::width<Arch>;
  simd::lanes<Arch> sum[M][V];
#pragma GCC unroll 16
  for (int r = 0; r < M; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) sum[r][v] = simd::zero<Arch>();

  for (index_t k = 0; k < steps; ++k, a += M, b += V * N) {
    typename element::vector columns_of_b[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) columns_of_b[v] = element::load(b + v * N), simd::hold(columns_of_b[v]);
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r) {
      typename element::vector row_of_a(a[r]);
      simd::hold(row_of_a);
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) sum[r][v] = element::multiply_add(row_of_a, columns_of_b[v], sum[r][v]);
    }
  }

#pragma GCC unroll 16
  for (int r = 0; r < M; ++r) {
    if (r >= used) break;
    float* row = c.data + (m + r) * c.stride + n;
    const simd::lanes<Arch> factor(c.alpha);
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      const index_t left = columns - v * N;
      float* to = row + v * N;
      if (left >= N) {
        simd::store(to, accumulate ? simd::fma(factor, sum[r][v], simd::load<Arch>(to)) : factor * sum[r][v]);
      } else if (left > 0) {  // the same arithmetic, so the same bits
        const auto old = accumulate ? simd::load_part<Arch>(to, left) : simd::zero<Arch>();
        simd::store_part(to, accumulate ? simd::fma(factor, sum[r][v], old) : factor * sum[r][v], left);
      }
    }
  }
}

/// The smallest kernel, of M, M - 2, …, 2 rows and 1 or 2 vectors, that holds the tile.
template <class Arch, class P, int M> void gemm_tile_of(const product& c, index_t m, index_t used, index_t n,
                                                        index_t columns, const cell_of<Arch, P>* a,
                                                        const cell_of<Arch, P>* b, index_t steps, bool accumulate) {
  if constexpr (M > 2)
    if (used <= M - 2) return gemm_tile_of<Arch, P, M - 2>(c, m, used, n, columns, a, b, steps, accumulate);
  if (columns <= simd::width<Arch>) gemm_micro<Arch, P, M, 1>(c, m, used, n, columns, a, b, steps, accumulate);
  else gemm_micro<Arch, P, M, 2>(c, m, used, n, columns, a, b, steps, accumulate);
}

/// Rows m … m_end-1 of C from a packed block of A, columns n … n+used-1 from a packed panel of B.
/// `between`(i, of) runs before the i-th micro-kernel.
template <class Arch, class P, class F>
void gemm_column(const product& c, index_t m, index_t m_end, index_t n, index_t used, const cell_of<Arch, P>* a,
                 const cell_of<Arch, P>* b, index_t steps, bool accumulate, F&& between) {
  constexpr index_t M = gemm_tile<Arch>::m;
  const index_t tiles = (m_end - m + M - 1) / M;
  for (index_t i = 0; i < tiles; ++i, m += M, a += M * steps) {
    between(i, tiles);
    gemm_tile_of<Arch, P, int(M)>(c, m, std::min(M, m_end - m), n, used, a, b, steps, accumulate);
  }
}

}  // namespace detail

/// The kernel. k: the length of the sums. Shapes of the factors: A (m, k), B (k, n), after transposition; the indices
/// of `p` count in the whole C, A and B.
template <class Arch, class P = float, class TA, class TB>
void gemm(const product& c, const factor<TA>& a, const factor<TB>& b, const part& p, index_t k) {
  using tile = detail::gemm_tile<Arch>;
  using cell = detail::cell_of<Arch, P>;
  using detail::round_up;
  constexpr index_t most = detail::block_depth<Arch, P>, terms = detail::cell<Arch, P>::terms;
  if (p.m_first >= p.m_last || p.n_first >= p.n_last) return;
  const index_t height = std::min(tile::height, round_up(p.m_last - p.m_first, 2));
  const index_t breadth = std::min(tile::breadth, round_up(p.n_last - p.n_first, tile::n));
  const index_t longest = round_up(std::min(most, k), terms) / terms, size_a = round_up(longest * height, 16);
  cell* const block_a = thread_scratch<detail::gemm_blocks<Arch>, cell>(size_a + longest * breadth);
  cell* const block_b = block_a + size_a;

  for (index_t n = p.n_first; n < p.n_last; n += breadth) {
    const index_t n_end = std::min(n + breadth, p.n_last);
    index_t k0 = 0;
    do {  // once where k is 0, for C = 0
      const index_t depth = std::min(most, k - k0), steps = round_up(depth, terms) / terms;
      for (index_t m = p.m_first; m < p.m_last; m += height) {
        const index_t m_end = std::min(m + height, p.m_last);
        detail::pack_block_a<Arch>(block_a, a, m, m_end, k0, depth, steps);
        for (index_t j = n; j < n_end; j += tile::n) {
          const index_t used = std::min(tile::n, n_end - j);
          const bool more = j + used < n_end;  // else the next panel is the first one further down
          const index_t next_n = more ? j + used : n, next_k = more ? k0 : k0 + depth;
          const index_t next_depth = std::min(most, k - next_k), next_used = std::min(tile::n, n_end - next_n);
          cell* const panel = block_b + (j - n) * steps;
          const bool fresh = m == p.m_first;  // the first block of A finds B not yet packed
          if (fresh) detail::pack_panel_b<Arch>(panel, b, j, used, k0, depth);
          const auto between = [&](index_t i, index_t of) {
            if (fresh) detail::prefetch_panel_b<Arch>(b, next_n, next_used, next_k, next_depth, i, of);
          };
          detail::gemm_column<Arch, P>(c, m, m_end, j, used, block_a, panel, steps, c.accumulate || k0 > 0, between);
        }
      }
    } while ((k0 += most) < k);
  }
}

}  // namespace moeskip::cpu_kernels
