// Experts in groups of neighbours, of which a token may use the best few: a token's experts then lie on few devices,
// and its weights in few places. Per token, on any scalar, host and device.       DeepSeek-V2, arXiv:2405.04434,
// section 2.1.3
#pragma once

#include <string_view>

#include "moeskip/parts/router/scoring.hpp"

namespace moeskip::router {

/// The first expert from `begin` on that is the caller's.
template <class By> MOESKIP_HD int first_of(int begin, const By& by) {
  return begin + (by.lane() - begin % by.lanes() + by.lanes()) % by.lanes();
}

/// The living experts of the `best` of `groups` groups. A group counts as much as its `Counted` best experts together,
/// by their scores (E) plus selection bias; one with fewer living ones counts less; among equals the lower number.
template <int Counted, class T>
MOESKIP_HD expert_set in_best_groups(const routed_token<T>& t, const T* scores, int groups, int best) {
  static_assert(Counted == 1 || Counted == 2);
  const int size = t.experts / groups;
  const auto worth = [&](int g) {
    real_t<T> first(-1e30f), second(-1e30f);
    together(t, [&](const auto& by) {
      for (int e = first_of(g * size, by); e < (g + 1) * size; e += by.lanes()) {
        if (!t.alive->contains(e)) continue;
        const real_t<T> score = real_part(scores[e]) + (t.bias ? real_part(t.bias[e]) : real_t<T>(0));
        if (score > first) second = first, first = score;
        else if (score > second) second = score;
      }
      by.two_largest(first, second);
    });
    return Counted == 1 || size == 1 ? first : first + second;
  };
  expert_set open, taken;  // taken: groups
  for (int i = 0; i < best; ++i) {
    int next = -1;
    real_t<T> most{};
    for (int g = 0; g < groups; ++g)
      if (const real_t<T> w = taken.contains(g) ? real_t<T>{} : worth(g); !taken.contains(g) && (next < 0 || w > most))
        next = g, most = w;
    taken.insert(next);
    for (int e = next * size; e < (next + 1) * size; ++e)
      if (t.alive->contains(e)) open.insert(e);
  }
  return open;
}

/// t.chosen (K) = the K best experts of the best groups, as choose_best has it. Where expert dropout has left these
/// fewer than K, the groups do not bind.
template <int K, int Counted, class T>
MOESKIP_HD void choose_in_groups(const routed_token<T>& t, const T* scores, int groups, int best) {
  if (best == groups) return choose_best<K>(t, scores);
  const expert_set open = in_best_groups<Counted>(t, scores, groups, best);
  routed_token<T> among = t;
  among.alive = &open;
  choose_best<K>(among, scores);
  if (t.chosen[K - 1] < 0) choose_best<K>(t, scores);
}

/// What is wrong with the numbers of groups; empty where nothing is.
constexpr std::string_view groups_problem(int groups, int best) {
  if (groups < 1 || groups > expert_set::capacity) return "router.groups must be from 1 to 512";
  if (best < 1 || best > groups) return "router.best_groups must be from 1 to router.groups";
  return {};
}
constexpr std::string_view groups_problem(int groups, int best, int experts, int per_token) {
  if (experts % groups) return "sizes.experts must be a multiple of router.groups";
  if (experts / groups * best < per_token) return "router.best_groups must hold at least experts_per_token experts";
  return {};
}

}  // namespace moeskip::router
