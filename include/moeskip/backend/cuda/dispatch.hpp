// Sorting choices by expert where they were made. One block does it, a warp an expert: counting, and giving out places,
// are sums over the bits of a vote.
#pragma once

#include <bit>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/ops/dispatch.hpp"

namespace moeskip {

namespace phase {

/// How many bits are set below a lane's.
MOESKIP_HD inline int votes_before(std::uint32_t votes, int lane) {
  return std::popcount(votes & ((std::uint32_t{1} << lane) - 1));
}

struct sort_choices {
  static constexpr const char* name = "sort_choices";
  static constexpr int barriers = 2, threads = 512;
  dispatch d;
  mat<const int> chosen;  // (N, K)
  int capacity;           // 0: none

  /// f(votes, c) for the choices of expert e: those of 32 choices n·K + k at a time, this lane's being c. By rank, all
  /// first choices before any second one, or in order of the rows.
  template <class Block, class F> MOESKIP_HD void each_choice(const Block& b, int e, bool by_rank, const F& f) const {
    const index_t N = chosen.rows(), K = chosen.cols();
    for (index_t i = 0; i < chosen.size(); i += 32) {
      const index_t at = i + b.lane(), c = at >= chosen.size() ? -1 : by_rank ? at % N * K + at / N : at;
      f(b.warp_which(c >= 0 && chosen.data()[c] == e), c);
    }
  }

  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const int E = d.experts(), lane = b.lane();
    for (index_t c = b.thread(); c < chosen.size(); c += b.threads())
      if (const int e = chosen.data()[c]; e < 0 || e >= E) d.assignment[c] = -1;
    for (int e = b.warp(); e < E; e += b.warps()) {
      int count = 0;
      each_choice(b, e, true, [&](std::uint32_t votes, index_t c) {
        const bool mine = votes >> lane & 1, kept = capacity == 0 || count + votes_before(votes, lane) < capacity;
        if (mine) d.assignment[c] = kept ? 0 : -1;
        count += std::popcount(votes);
      });
      if (capacity > 0 && count > capacity) count = capacity;
      if (lane == 0) d.first[e + 1] = count;
    }
    b.sync(0);
    if (b.thread() == 0) {
      int seen = 0;
      d.first[0] = 0;
      for (int e = 0; e < E; ++e) {
        if (d.first[e + 1] > 0) d.visited[seen++] = e;
        d.first[e + 1] += d.first[e];
      }
      for (; seen < d.visited.size(); ++seen) d.visited[seen] = -1;
    }
    b.sync(1);
    for (int e = b.warp(); e < E; e += b.warps()) {
      int m = d.first[e];
      each_choice(b, e, false, [&](std::uint32_t votes, index_t c) {
        const bool kept = votes >> lane & 1 && d.assignment[c] == 0;
        votes = b.warp_which(kept);
        if (kept) {
          const int mine = m + votes_before(votes, lane);
          d.assignment[c] = mine, d.row[mine] = int(c / chosen.cols()), d.choice[mine] = int(c), d.expert[mine] = e;
        }
        m += std::popcount(votes);
      });
    }
  }
};

}  // namespace phase

template <> struct kernel<sort_choices_t, on_cuda> {
  template <class B, class Memory>
  static void run(B&, dispatch& d, mat<const int> chosen, int E, index_t capacity, Memory& memory) {
    using call = detail::device_call<sort_choices_t, B>;
    const auto some = [&](index_t n) { return memory.template take<int>(n); };
    const index_t M = chosen.size();
    d = {some(E + 1), some(M), some(M), some(M), some(M), some(std::min<index_t>(E, M))};
    call::launch({1, phase::sort_choices::threads, 0},
                 phase::sort_choices{call::seen(d), call::seen(chosen), int(std::min(capacity, M + 1))});
  }
};

}  // namespace moeskip
