// The decode kernel: few tokens (1 to 16) times a weight matrix that streams past once.
//   y[t][o] = residual[t][o] + sum_i x[t][i] w[o][i]       o in [first, last); no residual: the sum alone
// Every y[t][o] has the same bits whatever the number of tokens in the call, the split of rows among calls or
// threads, and the tiles: one vector accumulator per (t, o) takes the inputs in ascending blocks, a short
// last block is padded with zeros, the lanes are folded in the one order of simd.hpp, the residual comes
// last. The inputs are packed once per matrix or, better, once for all matrices that read them (by each
// thread into scratch of its own, which needs no barrier: the cost is that of 1 to 2 weight rows per token).
//   T tokens of a tile · R weight rows of a tile · N lanes · block: 2 N bf16 or N floats, 64 bytes with
//   AVX-512
#pragma once

#include <algorithm>
#include <utility>

#include "moeskip/backend/cpu/simd.hpp"
#include "moeskip/base/check.hpp"

namespace moeskip::cpu_kernels {

inline constexpr index_t max_matvec_tokens = 16;

namespace detail {

// Most tokens for which a weight is widened once: R T accumulators, 2 T inputs and 3 temporaries fit the
// registers.
template <class Arch> inline constexpr index_t token_tile = simd::registers<Arch> == 32 ? 4 : 2;

// How much of the weights is on its way from memory: enough at 50 GB/s a core and 150 ns, and a sixth of the
// first level of cache.
inline constexpr index_t bytes_ahead = 8192;

template <class W, class Arch> inline constexpr index_t block = simd::width<Arch>* index_t(4 / sizeof(W));

template <class W, class Arch> constexpr index_t padded(index_t in) {
  return (in + block<W, Arch> - 1) / block<W, Arch> * block<W, Arch>;
}

/// Tokens go in tiles of near-equal size: how many, and the first token of one.
template <class Arch> constexpr index_t tiles_of(index_t tokens) {
  return (tokens + token_tile<Arch> - 1) / token_tile<Arch>;
}
template <class Arch> constexpr index_t first_of(index_t tile, index_t tokens) {
  return tile * tokens / tiles_of<Arch>(tokens);
}

/// One block of one token, as the kernel wants it: as it is, or for bf16 the even elements before the odd
/// ones.
template <class W, class Arch> void pack_block(float* to, const float* from) {
  using Q = simd::quad_arch<Arch>;
  constexpr index_t n = block<W, Arch>;
  if constexpr (sizeof(W) == 4) {
    simd::store(to, simd::load<Arch>(from));
  } else {
    for (index_t i = 0; i < n; i += 8) {
      auto low = simd::load<Q>(from + i), high = simd::load<Q>(from + i + 4);
      simd::deinterleave(low, high);
      simd::store(to + i / 2, low), simd::store(to + n / 2 + i / 2, high);
    }
  }
}

/// acc[r][t] += w[r][block] . x[t][block]. The loops must unroll whole, or the accumulators leave their
/// registers.
template <class W, int R, int T, class Arch>
[[gnu::always_inline]] inline void add_block(simd::lanes<Arch> (&acc)[R][T], const float* x, const W* w,
                                             index_t stride) {
  constexpr index_t N = simd::width<Arch>, halves = 4 / sizeof(W);
  simd::lanes<Arch> xs[T][halves];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 2
    for (int h = 0; h < halves; ++h)
      xs[t][h] = simd::load<Arch>(x + (t * halves + h) * N), simd::hold(xs[t][h]);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if constexpr (halves == 1) {
      auto weights = simd::load<Arch>(w + r * stride);
      simd::hold(weights);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) acc[r][t] = simd::fma(xs[t][0], weights, acc[r][t]);
    } else {
      const auto pairs = simd::load_words<Arch>(w + r * stride);
      const auto even = simd::even(pairs), odd = simd::odd(pairs);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) acc[r][t] = simd::fma(xs[t][0], even, acc[r][t]);
#pragma GCC unroll 16
      for (int t = 0; t < T; ++t) acc[r][t] = simd::fma(xs[t][1], odd, acc[r][t]);
    }
  }
}

}  // namespace detail

/// Out-arguments, weights and sizes of a call.
template <class W> struct matvec_args {
  float* y;  // (tokens, ldy)
  index_t ldy;
  const W* w;  // (rows, in)
  index_t in, tokens;
  const float* residual = nullptr;  // (tokens, ld_residual); may be y
  index_t ld_residual = 0;
};

/// Floats that packed inputs take.
template <class W, class Arch> constexpr index_t packed_size(index_t tokens, index_t in) {
  return tokens * detail::padded<W, Arch>(in);
}

/// packed (packed_size; 64-byte alignment is faster) = x (tokens, in), rows ldx apart, for weights of type W.
/// Layout: token tile, block, token of the tile.
template <class W, class Arch>
void pack_tokens(float* packed, const float* x, index_t ldx, index_t tokens, index_t in) {
  constexpr index_t n = detail::block<W, Arch>;
  for (index_t tile = 0; tile < detail::tiles_of<Arch>(tokens); ++tile) {
    const index_t first = detail::first_of<Arch>(tile, tokens),
                  last = detail::first_of<Arch>(tile + 1, tokens);
    for (index_t t = first; t < last; ++t) {
      float* to = packed + first * detail::padded<W, Arch>(in) + (t - first) * n;
      const float* from = x + t * ldx;
      index_t i = 0;
      for (; i + n <= in; i += n, to += n * (last - first)) detail::pack_block<W, Arch>(to, from + i);
      if (i < in) {
        alignas(alignment) float rest[n] = {};
        std::copy(from + i, from + in, rest);
        detail::pack_block<W, Arch>(to, rest);
      }
    }
  }
}

namespace detail {

/// Rows o … o+R-1, tokens t … t+T-1. x: the packed token tile.
template <class Arch, int R, int T, bool prefetched, class W>
void matvec_tile(const matvec_args<W>& a, const float* x, index_t o, index_t t0) {
  constexpr index_t n = block<W, Arch>;
  simd::lanes<Arch> acc[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[r][t] = simd::zero<Arch>();

  const W* w = a.w + o * a.in;
  index_t i = 0;
  // Each row is prefetched `lead` elements ahead in the walk of the tiles: further on in this row, then in
  // the row R below. Beyond the last row that is harmless, and where another thread goes on there, useful.
  const index_t whole = a.in - a.in % n, lead = bytes_ahead / (R * index_t(sizeof(W))), tiles = lead / a.in,
                columns = lead % a.in;
  const index_t here = tiles * R * a.in + columns, below = here + (R - 1) * a.in;
  for (const auto& [end, ahead] :
       {std::pair{std::min(whole, a.in - columns), here}, std::pair{whole, below}}) {
    for (; i < end; i += n, x += n * T) {
      if constexpr (prefetched) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) simd::prefetch(w + i + r * a.in, ahead);
      }
      add_block<W, R, T, Arch>(acc, x, w + i, a.in);
    }
  }
  if (i < a.in) {  // the rest of each row, padded with zeros
    alignas(alignment) W rest[R][n] = {};
    for (int r = 0; r < R; ++r) std::copy(w + r * a.in + i, w + (r + 1) * a.in, rest[r]);
    add_block<W, R, T, Arch>(acc, x, rest[0], n);
  }

#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    float* y = a.y + (t0 + t) * a.ldy + o;
    const float* residual = a.residual ? a.residual + (t0 + t) * a.ld_residual + o : nullptr;
    if constexpr (R % 4 == 0) {
      using Q = simd::quad_arch<Arch>;
#pragma GCC unroll 16
      for (int r = 0; r < R; r += 4) {
        const auto sums = simd::reduce_add(acc[r][t], acc[r + 1][t], acc[r + 2][t], acc[r + 3][t]);
        simd::store(y + r, residual ? simd::load<Q>(residual + r) + sums : sums);
      }
    } else {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const float sum = simd::reduce_add(acc[r][t]);
        y[r] = residual ? residual[r] + sum : sum;
      }
    }
  }
}

template <class Arch, int R, bool prefetched, class W>
void matvec_tile(const matvec_args<W>& a, const float* x, index_t o, index_t t, index_t T) {
  if (T == 1) return matvec_tile<Arch, R, 1, prefetched>(a, x, o, t);
  if (T == 2) return matvec_tile<Arch, R, 2, prefetched>(a, x, o, t);
  if constexpr (token_tile<Arch> == 4 && R <= 4) {
    if (T == 3) return matvec_tile<Arch, R, 3, prefetched>(a, x, o, t);
    return matvec_tile<Arch, R, 4, prefetched>(a, x, o, t);
  }
}

/// Row tiles of R as long as they fit, each for all tokens; returns the next row.
template <class Arch, int R, class W>
index_t matvec_rows(const matvec_args<W>& a, const float* packed, index_t o, index_t last) {
  const index_t tiles = tiles_of<Arch>(a.tokens);
  for (; o + R <= last; o += R)
    for (index_t tile = 0; tile < tiles; ++tile) {
      const index_t t = first_of<Arch>(tile, a.tokens), T = first_of<Arch>(tile + 1, a.tokens) - t;
      const float* x = packed + t * padded<W, Arch>(a.in);
      if (tile == 0)
        matvec_tile<Arch, R, true>(a, x, o, t, T);
      else
        matvec_tile<Arch, R, false>(a, x, o, t, T);
    }
  return o;
}

}  // namespace detail

/// The kernel: rows [first, last), on the calling thread. packed: the inputs, by pack_tokens<W, Arch>.
template <class Arch, class W>
void matvec(const matvec_args<W>& a, const float* packed, index_t first, index_t last) {
  MOESKIP_CHECK(shape_error, a.tokens >= 1 && a.tokens <= max_matvec_tokens && a.in >= 1,
                "matvec: expected 1 to ", max_matvec_tokens, " tokens and at least 1 input, got ", a.tokens,
                " and ", a.in);
  constexpr index_t few = simd::registers<Arch> == 32 ? 2 : 1;  // tokens that leave registers for 8 rows
  index_t o = first;
  if (a.tokens <= few) o = detail::matvec_rows<Arch, 8>(a, packed, o, last);
  o = detail::matvec_rows<Arch, 4>(a, packed, o, last);
  detail::matvec_rows<Arch, 1>(a, packed, o, last);
}

}  // namespace moeskip::cpu_kernels
