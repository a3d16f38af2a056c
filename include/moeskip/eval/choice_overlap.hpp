// How many of some choices of experts others share, token by token.
//   share = Σ_n |S_n ∩ F_n| / Σ_n |S_n|      S_n, F_n: what token n chose, and what it is said to choose
// 1 where every choice is among the others, K/E for unrelated even ones.
#pragma once

#include <algorithm>

#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct choice_overlap {
  long long shared = 0, all = 0;  // choices

  /// chosen, said: of one token; -1 is no choice.
  void add(vec<const int> chosen, vec<const int> said) {
    for (const int e : chosen)
      if (e >= 0) ++all, shared += std::find(said.begin(), said.end(), e) != said.end();
  }
  /// 0 where nothing was chosen.
  double share() const { return all ? double(shared) / double(all) : 0; }
};

}  // namespace moeskip
