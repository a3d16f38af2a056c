// What bernoulli and cluster are made of: groups of consecutive experts that live or vanish together.
#pragma once

#include "moeskip/concepts/expert_dropout.hpp"

namespace moeskip::expert_dropout {

/// Of groups of `size` consecutive experts (the last may be smaller) each vanishes with probability p. While fewer than
/// at_least experts are left, the vanished group with the highest draw comes back.
MOESKIP_HD inline expert_set surviving_groups(const mask_key& key, int experts, int at_least, float p, int size) {
  if (p <= 0) return expert_set::first(experts);
  const draws draw{key.from, stream::expert_dropout};
  const int groups = (experts + size - 1) / size;
  const auto height = [&](int g) {  // drawn again where it is asked for again: 2 KB are much for a thread of a GPU
    return draw.uniform(key.step, std::uint64_t(key.layer), key.token, std::uint64_t(g));
  };
  expert_set alive;
  const auto bring_back = [&](int g) {
    for (int e = g * size; e < (g + 1) * size && e < experts; ++e) alive.insert(e);
  };
  for (int g = 0; g < groups; ++g)
    if (height(g) >= p) bring_back(g);
  while (alive.size() < at_least && alive.size() < experts) {
    int highest = -1;
    float most = -1;
    for (int g = 0; g < groups; ++g) {
      if (alive.contains(g * size)) continue;
      if (const float h = height(g); h > most) most = h, highest = g;
    }
    bring_back(highest);
  }
  return alive;
}

/// What is wrong with a probability and a scope; empty where nothing is.
constexpr std::string_view problem_of(float p, mask_scope scope = mask_scope::step) {
  if (!(p >= 0 && p < 1)) return "expert_dropout.p must be in [0, 1)";
  if (scope != mask_scope::step && scope != mask_scope::sequence && scope != mask_scope::token)
    return "expert_dropout.scope must be 0 (step), 1 (sequence) or 2 (token)";
  return {};
}

}  // namespace moeskip::expert_dropout
