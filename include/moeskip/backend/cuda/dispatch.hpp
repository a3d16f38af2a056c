// Sorting choices by expert where they were made. One block does it, a warp an expert: counting, and giving out places,
// are sums over the bits of a vote.
#pragma once

#include <algorithm>
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
  int* visits = nullptr;  // experts visited are added to it

  template <class Block> MOESKIP_HD void operator()(const Block& b) const { run(b, 0); }
  /// With barriers from `barrier` on.
  template <class Block> MOESKIP_HD void run(const Block& b, int barrier) const {
    const int E = d.experts(), choices = int(chosen.size());
    int* const first = reinterpret_cast<int*>(b.shared());  // (E + 1): counts, and then where experts begin
    for (int c = b.thread(); c < choices; c += b.threads())
      if (const int e = chosen.data()[c]; e < 0 || e >= E) d.assignment[c] = -1;
    for (int e = b.warp(); e < E; e += b.warps()) {
      const int count = capacity > 0 ? keep_by_rank(b, e) : count_of(b, e);
      if (b.lane() == 0) first[e + 1] = count;
    }
    b.sync(barrier);
    if (b.warp() == 0) add_up(b, first);
    b.sync(barrier + 1);
    for (int e = b.thread(); e <= E; e += b.threads()) d.first[e] = first[e];
    for (int e = b.warp(); e < E; e += b.warps()) place(b, e, first[e]);
  }

 private:
  /// By a warp: counts become the experts' ends, and experts that have any are listed.
  template <class Block> MOESKIP_HD void add_up(const Block& b, int* first) const {
    const int E = d.experts();
    int seen = 0;
    float before = 0;  // numbers of choices, which floats hold exactly
    for (int from = 0; from < E; from += 32) {
      const int e = from + b.lane(), count = e < E ? first[e + 1] : 0;
      float end = float(count);
      for (int step = 1; step < 32; step *= 2) {
        const float more = b.warp_at(end, b.lane() < step ? b.lane() : b.lane() - step);
        end += b.lane() < step ? 0.f : more;
      }
      end += before, before = b.warp_at(end, 31);
      const std::uint32_t any = b.warp_which(count > 0);
      if (count > 0) d.visited[seen + votes_before(any, b.lane())] = e;
      if (e < E) first[e + 1] = int(end);
      seen += std::popcount(any);
    }
    if (b.lane() == 0) first[0] = 0;
    if (b.lane() == 0 && visits) *visits += seen;
    for (index_t i = seen + b.lane(); i < d.visited.size(); i += 32) d.visited[i] = -1;
  }
  template <class Block> MOESKIP_HD int count_of(const Block& b, int e) const {
    int count = 0;
    for (index_t i = 0; i < chosen.size(); i += 32) count += std::popcount(votes(b, e, i, chosen.size(), 1));
    return count;
  }
  /// The same with a capacity: all first choices before any second one, and within a rank in order of the rows. Marks
  /// those that are kept with 0, the others with -1.
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
  /// Gives an expert's choices their places, in order of the rows.
  template <class Block> MOESKIP_HD void place(const Block& b, int e, int m) const {
    for (index_t i = 0; i < chosen.size(); i += 32) {
      std::uint32_t all = votes(b, e, i, chosen.size(), 1);
      const index_t c = i + b.lane();
      bool mine = all >> b.lane() & 1;
      if (capacity > 0) mine = mine && d.assignment[c] == 0, all = b.warp_which(mine);
      if (mine) {
        const int at = m + votes_before(all, b.lane());
        d.assignment[c] = at, d.row[at] = int(c / chosen.cols()), d.choice[at] = int(c), d.expert[at] = e;
      }
      m += std::popcount(all);
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
        {1, phase::sort_choices::threads, E + 1},
        phase::sort_choices{call::seen(d), call::seen(chosen), detail::int_capacity(chosen, capacity), call::visits()});
  }
};

}  // namespace moeskip
