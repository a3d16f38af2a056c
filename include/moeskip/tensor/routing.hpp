// Which experts the rows of a call go to, and the same sorted by expert.
//   N rows   E experts   K experts per row   M <= N·K assignments that are not dropped
#pragma once

#include "moeskip/base/bit_set.hpp"
#include "moeskip/tensor/planes.hpp"

namespace moeskip {

template <class T> struct routing {
  mat<T> probability;  // (N, E)
  mat<int> chosen;     // (N, K) distinct experts, best first
  mat<T> gate;         // (N, K)
  vec<T> load;         // (E) share of the N·K choices that fell on each expert; sums to 1
};

/// The experts that each row may choose: one set for all rows, or one per row.
struct living_experts {
  vec<const expert_set> sets;  // (1) or (N)
  MOESKIP_HD const expert_set& of(index_t n) const { return sets[sets.size() == 1 ? 0 : n]; }
};

/// What routers lose beside the model's own loss; ops/route.hpp has the formulas.
template <class T> struct auxiliary_losses {
  T balance{}, z{}, change{};  // unweighted
  MOESKIP_HD auxiliary_losses& operator+=(const auxiliary_losses& more) {
    balance += more.balance, z += more.z, change += more.change;
    return *this;
  }
};

/// Assignments in order of expert, then of row: each expert's weights are read once, and every row's experts are
/// added in the order of their ids.
struct dispatch {
  vec<int> first;       // (E+1) assignments of expert e are [first[e], first[e+1])
  vec<int> row;         // (M) the row n of each assignment
  vec<int> choice;      // (M) its place n·K + k in `chosen` and `gate`
  vec<int> assignment;  // (N·K) the inverse: n·K + k -> m, or -1 where dropped over capacity
  vec<int> expert;      // (M) of each assignment
  vec<int> visited;     // experts that have any, -1 behind them
  MOESKIP_HD int experts() const { return int(first.size()) - 1; }
  /// Of row, choice and expert. On a backend that runs late this is N·K, whatever first[E] will be.
  index_t size() const { return row.size(); }
};

/// The weights of E SwiGLU experts.
template <class W> struct expert_weights {
  planes<W> gate_up;  // (E, 2F, D): F rows of gate, then F rows of up
  planes<W> down;     // (E, D, F)
};

}  // namespace moeskip
