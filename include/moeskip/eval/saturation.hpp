// How far the routing of a checkpoint is that of a later one, on the same text, layer by layer.
//   saturation(t) = 1/N Σ_n |S_n(t) ∩ S_n(T)| / K      S_n(t): the K experts that token n chose at step t, T: the last step
//                                                      "router saturation", OLMoE, arXiv:2409.02060, section 5.1
// 1 where every token goes where it will go, K/E for unrelated even choices.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "moeskip/base/check.hpp"

namespace moeskip {

/// earlier, later: (N, K) choices of the same tokens in the same layer; -1 is no choice. Throws config_error unless both have as
/// many, a multiple of K.
inline double saturation(std::span<const int> earlier, std::span<const int> later, int per_token) {
  MOESKIP_CHECK(config_error, per_token >= 1 && later.size() % std::size_t(per_token) == 0, "saturation: expected ",
                per_token, " choices for each token, got ", later.size(), " in all");
  MOESKIP_CHECK(config_error, earlier.size() == later.size(),
                "saturation: expected the choices of the same tokens, got ", earlier.size(), " and ", later.size());
  std::size_t both = 0, all = 0;
  for (std::size_t n = 0; n < later.size(); n += std::size_t(per_token)) {
    const auto before = earlier.subspan(n, std::size_t(per_token));
    for (const int e : later.subspan(n, std::size_t(per_token)))
      if (e >= 0) ++all, both += std::find(before.begin(), before.end(), e) != before.end();
  }
  return all ? double(both) / double(all) : 0;
}

}  // namespace moeskip
