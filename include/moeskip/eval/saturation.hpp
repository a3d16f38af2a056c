// How far the routing of a checkpoint is that of a later one, on the same text, layer by layer.
//   saturation(t) = 1/N Σ_n |S_n(t) ∩ S_n(T)| / K      S_n(t): the K experts that token n chose at step t, T: the last step
//                                                      "router saturation", OLMoE, arXiv:2409.02060, section 5.1
// 1 where every token goes where it will go, K/E for unrelated even choices.
#pragma once

#include <span>

#include "moeskip/base/check.hpp"
#include "moeskip/eval/choice_overlap.hpp"

namespace moeskip {

/// earlier, later: (N, K) choices of the same tokens in the same layer; -1 is no choice. Throws config_error unless
/// both have as many, a multiple of K.
inline double saturation(std::span<const int> earlier, std::span<const int> later, int per_token) {
  MOESKIP_CHECK(config_error, per_token >= 1 && later.size() % std::size_t(per_token) == 0, "saturation: expected ",
                per_token, " choices for each token, got ", later.size(), " in all");
  MOESKIP_CHECK(config_error, earlier.size() == later.size(),
                "saturation: expected the choices of the same tokens, got ", earlier.size(), " and ", later.size());
  choice_overlap kept;
  for (std::size_t n = 0; n < later.size(); n += std::size_t(per_token))
    kept.add({later.data() + n, per_token}, {earlier.data() + n, per_token});
  return kept.share();
}

}  // namespace moeskip
