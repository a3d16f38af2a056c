// N sums over all rows of a call, in a few blocks: the one that is done last adds up what the others wrote, in their
// order, so that sums repeat themselves bit for bit.
#pragma once

#include <algorithm>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"

namespace moeskip {

namespace phase {

/// f(n) for every row n < N, by all threads of all blocks in turn.
template <class Block, class F> MOESKIP_HD void for_rows(const Block& b, index_t N, const F& f) {
  for (index_t n = b.block() * b.threads() + b.thread(); n < N; n += b.blocks() * b.threads()) f(n);
}

template <int N> struct parts_of_rows {
  mat<float> parts;  // (blocks, N)
  int* done;         // blocks that have written theirs

  /// done_with(sums) of all rows, by one thread, from each thread's own. One barrier.
  template <class Block, class F>
  MOESKIP_HD void add(const Block& b, float (&own)[N], int barrier, const F& done_with) const {
    block_sums(b, own, 0, barrier);
    if (b.thread() != 0) return;
    for (int i = 0; i < N; ++i) parts(b.block(), i) = own[i];
    if (!b.last_of(b.blocks(), done)) return;
    float all[N] = {};
    for (index_t p = 0; p < parts.rows(); ++p)
      for (int i = 0; i < N; ++i) all[i] += parts(p, i);
    done_with(all);
  }
};

}  // namespace phase

namespace detail {

/// How many blocks there are depends on the rows alone, or sums would depend on the GPU.
template <int N> launch_shape blocks_of_rows(index_t rows) {
  constexpr index_t threads = 256, most = 64;
  return {std::min(ceiling(rows, threads), most), int(threads), 32 * N};
}
template <class Call, int N> phase::parts_of_rows<N> parts_for(const launch_shape& shape) {
  return {Call::scratch().template take<float>(shape.blocks, N), Call::counters(1)};
}

}  // namespace detail

}  // namespace moeskip
