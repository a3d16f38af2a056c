// Sorting choices by expert where they were made, by one block. Each of its warps takes a run of the choices and counts
// them, 32 at a time: who has the same expert as I is a vote. With a capacity, a warp takes an expert instead, whose
// choices are kept by their rank.
#pragma once

#include <algorithm>
#include <bit>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"
#include "moeskip/ops/dispatch.hpp"

namespace moeskip {

namespace phase {

/// How many bits are set below a lane's.
MOESKIP_HD inline int votes_before(std::uint32_t votes, int lane) {
  return std::popcount(votes & ((std::uint32_t{1} << lane) - 1));
}

struct sort_choices {
  static constexpr const char* name = "sort_choices";
  static constexpr int barriers = 2, threads = 512, most_warps = threads / 32;
  dispatch d;
  mat<const int> chosen;  // (N, K)
  int capacity;           // 0: none
  int* visits = nullptr;  // experts visited are added to it

  /// Floats that a block shares: where experts begin (E + 1), and counts of the choices of each warp (warps, E).
  MOESKIP_HD static index_t shared(index_t E) { return E + 1 + most_warps * E; }

  template <class Block> MOESKIP_HD void operator()(const Block& b) const { run(b, 0); }
  /// With barriers from `barrier` on.
  template <class Block> MOESKIP_HD void run(const Block& b, int barrier) const {
    const int E = d.experts();
    int *const first = reinterpret_cast<int*>(b.shared()), *const counts = first + E + 1;
    for (index_t c = b.thread(); c < chosen.size(); c += b.threads())
      if (expert(c) < 0) d.assignment[c] = -1;
    if (capacity > 0) {
      for (int e = b.warp(); e < E; e += b.warps()) {
        const int count = keep_by_rank(b, e);
        if (b.lane() == 0) first[e + 1] = count;
      }
    } else {
      count_run(b, counts + b.warp() * E);
    }
    b.sync(barrier);
    if (b.warp() == 0) add_up(b, first, counts);
    b.sync(barrier + 1);
    for (int e = b.thread(); e <= E; e += b.threads()) d.first[e] = first[e];
    if (capacity > 0)
      for (int e = b.warp(); e < E; e += b.warps()) place_kept(b, e, first[e]);
    else place_run(b, first, counts + b.warp() * E);
  }

 private:
  /// The expert of choice c; -1 where there is none.
  MOESKIP_HD int expert(index_t c) const {
    const int e = c < chosen.size() ? chosen.data()[c] : -1;
    return e < d.experts() ? e : -1;
  }
  /// By a warp: counts become the experts' ends, and experts that have any are listed. Counts of warps become those of
  /// the warps before them.
  template <class Block> MOESKIP_HD void add_up(const Block& b, int* first, int* counts) const {
    const int E = d.experts();
    int seen = 0, before = 0;
    for (int from = 0; from < E; from += 32) {
      const int e = from + b.lane();
      int count = e < E && capacity > 0 ? first[e + 1] : 0;
      for (int w = 0; e < E && capacity == 0 && w < b.warps(); ++w) {
        const int own = counts[w * E + e];
        counts[w * E + e] = count, count += own;
      }
      const int end = before + lanes_up_to(b, count);
      before = int(b.warp_at(float(end), 31));
      const std::uint32_t any = b.warp_which(count > 0);
      if (count > 0) d.visited[seen + votes_before(any, b.lane())] = e;
      if (e < E) first[e + 1] = end;
      seen += std::popcount(any);
    }
    if (b.lane() == 0) first[0] = 0;
    if (b.lane() == 0 && visits) *visits += seen;
    for (index_t i = seen + b.lane(); i < d.visited.size(); i += 32) d.visited[i] = -1;
  }
  /// f(c, e, who) of each choice of a warp's run, 32 at a time: its expert, and which lanes have the same one. What lanes
  /// wrote before, all of them see.
  template <class Block, class F> MOESKIP_HD void each_of_run(const Block& b, const F& f) const {
    const index_t parts = (chosen.size() + 31) / 32, run = (parts + b.warps() - 1) / b.warps(), from = b.warp() * run;
    for (index_t part = from; part < from + run && part < parts; ++part) {
      const index_t c = 32 * part + b.lane();
      const int e = expert(c);
      f(c, e, b.warp_same(e));
      b.sync_warp();
    }
  }
  /// Whether a lane is the last of these.
  template <class Block> MOESKIP_HD static bool leads(const Block& b, std::uint32_t who) {
    return who >> b.lane() == 1;
  }
  /// mine (E): how many choices of its run each expert has.
  template <class Block> MOESKIP_HD void count_run(const Block& b, int* mine) const {
    for (int e = b.lane(); e < d.experts(); e += 32) mine[e] = 0;
    b.sync_warp();
    each_of_run(b, [&](index_t, int e, std::uint32_t who) {
      if (e >= 0 && leads(b, who)) mine[e] += std::popcount(who);
    });
  }
  /// Gives the choices of a run their places behind those of the warps before, in order of the rows.
  template <class Block> MOESKIP_HD void place_run(const Block& b, const int* first, int* mine) const {
    each_of_run(b, [&](index_t c, int e, std::uint32_t who) {
      if (e >= 0) put(c, e, first[e] + mine[e] + votes_before(who, b.lane()));
      b.sync_warp();
      if (e >= 0 && leads(b, who)) mine[e] += std::popcount(who);
    });
  }
  MOESKIP_HD void put(index_t c, int e, int at) const {
    d.assignment[c] = at, d.row[at] = int(c / chosen.cols()), d.choice[at] = int(c), d.expert[at] = e;
  }
  /// How many choices an expert of limited capacity keeps: all first ones before any second one, and within a rank in
  /// order of the rows. Marks those that are kept with 0, the others with -1.
  template <class Block> MOESKIP_HD int keep_by_rank(const Block& b, int e) const {
    int count = 0;
    for (int k = 0; k < chosen.cols(); ++k)
      for (index_t n = 0; n < chosen.rows(); n += 32) {
        const std::uint32_t all = votes(b, e, n * chosen.cols() + k, chosen.size(), int(chosen.cols()));
        if (all >> b.lane() & 1)
          d.assignment[(n + b.lane()) * chosen.cols() + k] = count + votes_before(all, b.lane()) < capacity ? 0 : -1;
        count += std::popcount(all);
      }
    return count < capacity ? count : capacity;
  }
  /// Gives those their places, in order of the rows.
  template <class Block> MOESKIP_HD void place_kept(const Block& b, int e, int m) const {
    for (index_t i = 0; i < chosen.size(); i += 32) {
      const index_t c = i + b.lane();
      const std::uint32_t chose = votes(b, e, i, chosen.size(), 1);
      const std::uint32_t kept = b.warp_which((chose >> b.lane() & 1) && d.assignment[c] == 0);
      if (kept >> b.lane() & 1) put(c, e, m + votes_before(kept, b.lane()));
      m += std::popcount(kept);
    }
  }
  /// Of the choices from, from + step … of 32 lanes, below `end`: which are e.
  template <class Block>
  MOESKIP_HD std::uint32_t votes(const Block& b, int e, index_t from, index_t end, int step) const {
    const index_t c = from + b.lane() * step;
    return b.warp_which(c < end && chosen.data()[c] == e);
  }
};

}  // namespace phase

namespace detail {

/// Where the device sorts choices (N, K) of E experts.
template <class Memory> dispatch room_for_choices(mat<const int> chosen, int E, Memory& memory) {
  const auto some = [&](index_t n) { return memory.template take<int>(n); };
  const index_t M = chosen.size();
  return {some(E + 1), some(M), some(M), some(M), some(M), some(std::min<index_t>(E, M))};
}
/// A capacity as an int: beyond all choices it is as good as any.
inline int int_capacity(mat<const int> chosen, index_t capacity) { return int(std::min(capacity, chosen.size() + 1)); }

}  // namespace detail

template <> struct kernel<sort_choices_t, on_cuda> {
  template <class B, class Memory>
  static void run(B&, dispatch& d, mat<const int> chosen, int E, index_t capacity, Memory& memory) {
    using call = detail::device_call<sort_choices_t, B>;
    d = detail::room_for_choices(chosen, E, memory);
    call::launch(
        {1, phase::sort_choices::threads, phase::sort_choices::shared(E)},
        phase::sort_choices{call::seen(d), call::seen(chosen), detail::int_capacity(chosen, capacity), call::visits()});
  }
};

}  // namespace moeskip
