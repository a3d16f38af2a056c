// The decode kernel: few tokens (1 to 16) times a weight matrix that streams past once.
//   y[t][o] = residual[t][o] + sum_i x[t][i] w[o][i]       o in [first, last); no residual: the sum alone
// Every y[t][o] has the same bits whatever the number of tokens in the call, the split of rows among calls or
// threads, and the tiles: one vector accumulator per (t, o) takes the inputs in ascending blocks, a short
// last block is padded with zeros, the lanes are folded in the one order of simd.hpp, the residual comes
// last. The inputs are packed once per matrix or, better, once for all matrices that read them; each thread
// does it into scratch of its own, which needs no barrier. Packing 1024 inputs takes 75 ns a token: as long
// as one row of weights from memory, or 4 to 9 rows from the cache (bf16, Zen 5, 2026-11-23).
// Inputs of type X: float; or bf16, rounded, for products of two bf16 (weights in bf16 only), which take a weight as it
// is stored: with AVX512-BF16 one instruction for 32 of them where floats take two and two to widen.
//   T tokens of a tile · R weight rows of a tile · N lanes · block: 2 N bf16 or N floats (AVX-512: 64 bytes)
#pragma once

#include <algorithm>
#include <type_traits>

#include "moeskip/backend/cpu/simd.hpp"
#include "moeskip/base/check.hpp"

namespace moeskip::cpu_kernels {

inline constexpr index_t max_matvec_tokens = 16;

/// What inputs become for weights stored as W and products of P.
template <class W, class P> using packed_input =
    std::conditional_t<std::is_same_v<W, bf16> && std::is_same_v<P, bf16>, bf16, float>;

namespace detail {

// Most tokens for which a weight is widened once: R T accumulators, 2 T inputs and 3 temporaries fit the
// registers.
template <class Arch> inline constexpr index_t token_tile = simd::registers<Arch> == 32 ? 4 : 2;

// The rows of a call go as four streams, each a quarter of them and contiguous: hardware prefetchers follow
// four long streams best. Zen 5, 2 cores, bf16, quiet, 2026-11-23, share of a pure read: four streams 0.99,
// six 0.85, eight 0.78, four neighbouring rows at a time 0.80. Each stream is also prefetched by hand, this
// far ahead of its use.
inline constexpr index_t streams = 4, bytes_ahead = 2048;

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

/// One block of one token, as the kernel wants it: as it is, or for weights in bf16 the even elements before the odd
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

template <class W, class Arch> void pack_block(bf16* to, const float* from) {
  simd::round<Arch>(to, from, block<W, Arch>);
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
    for (int h = 0; h < halves; ++h) xs[t][h] = simd::load<Arch>(x + (t * halves + h) * N), simd::hold(xs[t][h]);
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

template <class W, int R, int T, class Arch>
[[gnu::always_inline]] inline void add_block(simd::lanes<Arch> (&acc)[R][T], const bf16* x, const W* w,
                                             index_t stride) {
  simd::words<Arch> xs[T];
#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) xs[t] = simd::load_words<Arch>(x + t * block<W, Arch>), simd::hold(xs[t]);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    auto weights = simd::load_words<Arch>(w + r * stride);
    simd::hold(weights);
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[r][t] = simd::dot<Arch>(xs[t], weights, acc[r][t]);
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

/// Elements that packed inputs take.
template <class W, class Arch> constexpr index_t packed_size(index_t tokens, index_t in) {
  return tokens * detail::padded<W, Arch>(in);
}

/// packed (packed_size; 64-byte alignment is faster) = x (tokens, in), rows ldx apart, for weights of type W.
/// Layout: token tile, block, token of the tile.
template <class W, class Arch, class X>
void pack_tokens(X* packed, const float* x, index_t ldx, index_t tokens, index_t in) {
  constexpr index_t n = detail::block<W, Arch>;
  for (index_t tile = 0; tile < detail::tiles_of<Arch>(tokens); ++tile) {
    const index_t first = detail::first_of<Arch>(tile, tokens), last = detail::first_of<Arch>(tile + 1, tokens);
    for (index_t t = first; t < last; ++t) {
      X* to = packed + first * detail::padded<W, Arch>(in) + (t - first) * n;
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

/// What one pass over a row tile prefetches: `count` of its rows, from `from` on, at the same column.
template <class W> struct prefetches {
  const W* from;
  index_t ahead;  // elements from there to what is fetched
  int count;
};

/// Rows o, o + gap, … o + (R-1) gap; tokens t0 … t0+T-1. x: the packed token tile. `all`: it prefetches all
/// rows.
template <class Arch, int R, int T, bool all, class W, class X>
void matvec_tile(const matvec_args<W>& a, const X* x, index_t o, index_t gap, index_t t0, prefetches<W> next) {
  constexpr index_t n = block<W, Arch>;
  simd::lanes<Arch> acc[R][T];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
    for (int t = 0; t < T; ++t) acc[r][t] = simd::zero<Arch>();

  const W* w = a.w + o * a.in;
  const index_t stride = gap * a.in;
  constexpr index_t line = 64 / index_t(sizeof(W));
  index_t i = 0;
  for (; i + n <= a.in; i += n, x += n * T) {
    if (n < line && i % line != 0) {  // narrow vectors: this line has been prefetched
    } else if constexpr (all) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) simd::prefetch<simd::cache::second>(w + i + r * stride, next.ahead);
    } else {
      for (int r = 0; r < next.count; ++r) simd::prefetch<simd::cache::second>(next.from + i + r * stride, next.ahead);
    }
    add_block<W, R, T, Arch>(acc, x, w + i, stride);
  }
  if (i < a.in) {  // the rest of each row, padded with zeros
    alignas(alignment) W rest[R][n] = {};
    for (int r = 0; r < R; ++r) std::copy(w + r * stride + i, w + r * stride + a.in, rest[r]);
    add_block<W, R, T, Arch>(acc, x, rest[0], n);
  }

#pragma GCC unroll 16
  for (int t = 0; t < T; ++t) {
    alignas(16) float sums[R];
    if constexpr (R == 4) simd::store(sums, simd::reduce_add(acc[0][t], acc[1][t], acc[2][t], acc[3][t]));
    else sums[0] = simd::reduce_add(acc[0][t]);
    float* y = a.y + (t0 + t) * a.ldy + o;
    const float* residual = a.residual ? a.residual + (t0 + t) * a.ld_residual + o : nullptr;
    for (int r = 0; r < R; ++r) y[r * gap] = residual ? residual[r * gap] + sums[r] : sums[r];
  }
}

template <class Arch, int R, bool all, class W, class X> void matvec_tile(const matvec_args<W>& a, const X* x,
                                                                          index_t o, index_t gap, index_t t, index_t T,
                                                                          const prefetches<W>& next) {
  if (T == 1) return matvec_tile<Arch, R, 1, all>(a, x, o, gap, t, next);
  if (T == 2) return matvec_tile<Arch, R, 2, all>(a, x, o, gap, t, next);
  if constexpr (token_tile<Arch> == 4) {
    if (T == 3) return matvec_tile<Arch, R, 3, all>(a, x, o, gap, t, next);
    return matvec_tile<Arch, R, 4, all>(a, x, o, gap, t, next);
  }
}

/// As many rows of [o, last) as R streams of equal length hold, each row tile for all tokens; returns the
/// next row.
template <class Arch, int R, class W, class X>
index_t matvec_rows(const matvec_args<W>& a, const X* packed, index_t o, index_t last) {
  const index_t tiles = tiles_of<Arch>(a.tokens), gap = (last - o) / R;
  const index_t ahead = bytes_ahead / index_t(sizeof(W)), rows_ahead = (ahead + a.in - 1) / a.in;
  for (const index_t end = o + gap; o < end; ++o) {
    if (tiles == 1) {
      matvec_tile<Arch, R, true>(a, packed, o, gap, 0, a.tokens, {nullptr, ahead, R});
      continue;
    }
    for (index_t tile = 0; tile < tiles; ++tile) {  // each token tile prefetches its share of the next rows
      const index_t t = first_of<Arch>(tile, a.tokens), T = first_of<Arch>(tile + 1, a.tokens) - t;
      const index_t r = tile * R / tiles, r_end = (tile + 1) * R / tiles;
      matvec_tile<Arch, R, false>(a, packed + t * padded<W, Arch>(a.in), o, gap, t, T,
                                  {a.w + (o + r * gap) * a.in, rows_ahead * a.in, int(r_end - r)});
    }
  }
  return o + gap * (R - 1);
}

}  // namespace detail

/// The kernel: rows [first, last), on the calling thread. packed: the inputs, by pack_tokens<W, Arch>.
template <class Arch, class W, class X>
void matvec(const matvec_args<W>& a, const X* packed, index_t first, index_t last) {
  MOESKIP_CHECK(shape_error, a.tokens >= 1 && a.tokens <= max_matvec_tokens && a.in >= 1, "matvec: expected 1 to ",
                max_matvec_tokens, " tokens and at least 1 input, got ", a.tokens, " and ", a.in);
  const index_t o = detail::matvec_rows<Arch, detail::streams>(a, packed, first, last);
  detail::matvec_rows<Arch, 1>(a, packed, o, last);
}

}  // namespace moeskip::cpu_kernels
