// Hash routing: a token's experts follow from its vocabulary id alone, by a fixed random draw per layer; nothing is
// learned.                                             "Hash Layers", Roller et al. 2021, arXiv:2106.04426
#pragma once

#include <string_view>

#include "moeskip/parts/router/scoring.hpp"

namespace moeskip::router {

template <int K> struct hash {
  static constexpr std::string_view name = "hash";
  static constexpr int experts_per_token = K;
  using made_by_warps = hash;
  static constexpr int logits_per_expert = 0;

  int table = 1;  // which of the random assignments

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const {
    together(t, [&](const auto& by) {
      for (int e = by.lane(); e < t.experts; e += by.lanes()) t.probability[e] = T{};
      by.sync();
    });
  }
  /// The K living experts with the highest draws: those of a vanished one go to the next.
  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const {
    const draws draw{seed{std::uint64_t(std::uint32_t(table))}, stream::hash_routing};
    T height[expert_set::capacity];
    const auto token = std::uint64_t(std::uint32_t(t.token));
    together(t, [&](const auto& by) {
      for (int e = by.lane(); e < t.experts; e += by.lanes())
        height[e] = T(real_t<T>(draw.uniform(0, std::uint64_t(t.layer), token, std::uint64_t(e))));
    });
    choose_best<K>(t, height);
  }
  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const {
    together(t, [&](const auto& by) {
      for (int k = by.lane(); k < K; k += by.lanes()) t.probability[t.chosen[k]] = t.gate[k] = T(1) / T(K);
    });
  }
  template <class T> MOESKIP_HD void backward(const routed_token<T>&, const T*, T*, T*) const {}

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) { f("table", self.table); }
  friend constexpr bool operator==(const hash&, const hash&) = default;
};

}  // namespace moeskip::router
