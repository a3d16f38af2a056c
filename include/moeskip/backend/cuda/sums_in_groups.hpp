// n sums over what each block of a phase brings, in two steps: the block of a group that is done last adds up what its
// group brought, and the one that is last of all finds a sum of each group. Which block brings what is fixed, and so is
// the order of the additions: sums repeat themselves bit for bit.
#pragma once

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"

namespace moeskip {

namespace phase {

struct sums_in_groups {
  static constexpr int group = 16;  // blocks
  static constexpr int barriers = 4;
  mat<float> parts, grouped;  // (blocks, n) (groups, n)
  int* done;                  // (1 + groups) groups that are done, and blocks of each

  /// What this block brings to sum i.
  template <class Block> MOESKIP_HD float& part(const Block& b, index_t i) const { return parts(b.block(), i); }

  /// Whether this block, whose parts are all written, is the last one of all; total() is known then. They use the first
  /// number that the block shares, and barriers from `barrier` on.
  template <class Block> MOESKIP_HD bool finished(const Block& b, int barrier) const {
    const index_t own = b.block() / group, first = own * group, left = parts.rows() - first;
    const int blocks = left < group ? int(left) : group;
    if (!last(b, blocks, done + 1 + own, barrier)) return false;
    for (index_t i = b.thread(); i < parts.cols(); i += b.threads()) {
      float brought[group], sum = 0;  // all on their way at once
      unrolled<group>([&](auto p) { brought[p] = p < blocks ? parts(first + p, i) : 0.f; });
      unrolled<group>([&](auto p) { sum += brought[p]; });
      grouped(own, i) = sum;
    }
    return last(b, int(grouped.rows()), done, barrier + 2);
  }
  MOESKIP_HD float total(index_t i) const {
    constexpr int at_once = 8;
    float sum = 0;
    for (index_t g = 0; g < grouped.rows(); g += at_once) {
      float of_group[at_once];
      unrolled<at_once>([&](auto j) { of_group[j] = g + j < grouped.rows() ? grouped(g + j, i) : 0.f; });
      unrolled<at_once>([&](auto j) { sum += of_group[j]; });
    }
    return sum;
  }

 private:
  template <class Block> MOESKIP_HD static bool last(const Block& b, int of, int* counter, int barrier) {
    int* const found = reinterpret_cast<int*>(b.shared());
    b.sync(barrier);
    if (b.thread() == 0) *found = b.last_of(of, counter);
    b.sync(barrier + 1);
    return *found;
  }
};

}  // namespace phase

namespace detail {

template <class Call> phase::sums_in_groups sums_of(index_t blocks, index_t n) {
  const index_t groups = ceiling(blocks, phase::sums_in_groups::group);
  return {Call::scratch().template take<float>(blocks, n), Call::scratch().template take<float>(groups, n),
          Call::counters(1 + groups)};
}

}  // namespace detail

}  // namespace moeskip
