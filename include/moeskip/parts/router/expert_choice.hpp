// Expert choice: every expert takes the tokens of a call that score highest with it, the same number each, so balance
// is perfect and tokens get from 0 to Most experts.                               Zhou et al. 2022, arXiv:2202.09368
//   tokens per expert = ⌈N · per_token / E⌉     gates: probabilities over all experts
// A token's experts depend on the tokens after it, so a model so trained cannot generate: every pass but training
// refuses to compile. Tokens that more than Most experts take keep those with the highest probability.
#pragma once

#include <algorithm>
#include <cmath>
#include <string_view>

#include "moeskip/parts/router/scoring.hpp"
#include "moeskip/tensor/routing.hpp"

namespace moeskip::router {

template <int Most> struct expert_choice {
  static constexpr std::string_view name = "expert_choice";
  static constexpr int experts_per_token = Most;
  static constexpr bool experts_choose = true;
  using made_by_warps = expert_choice;

  float per_token = 2.f;  // experts of a token, on average
  float z_loss = 0.001f;

  constexpr double active_experts() const { return per_token; }
  constexpr std::string_view problem() const {
    if (!(per_token > 0 && per_token <= Most)) return "router.per_token must be above 0 and at most experts_per_token";
    return auxiliary_problem(0, z_loss);
  }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const { softmax_alive(t, t.logits); }
  /// The choice of a token that nobody competes with; choose_rows makes that of a call.
  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const { choose_best<Most>(t, t.probability); }
  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const { weigh_by_probability<Most>(t); }

  /// chosen (N, Most) from probability (N, E): experts in order of probability, -1 behind them.
  /// `order` (N) is scratch. Among equals the earlier row, the lower id.
  template <class T> void choose_rows(mat<int> chosen, mat<const T> probability, vec<int> order) const {
    const index_t N = probability.rows(), E = probability.cols();
    const index_t each = std::min<index_t>(N, index_t(std::ceil(double(N) * double(per_token) / double(E))));
    std::fill(chosen.begin(), chosen.end(), -1);
    for (index_t e = 0; e < E; ++e) {
      const auto better = [&](int a, int b) {
        const auto pa = real_part(probability(a, e)), pb = real_part(probability(b, e));
        return pa > pb || (pa == pb && a < b);
      };
      for (index_t n = 0; n < N; ++n) order[n] = int(n);
      std::nth_element(order.begin(), order.begin() + each, order.end(), better);
      for (index_t i = 0; i < each; ++i)
        if (real_part(probability(order[i], e)) > 0) insert(chosen.row(order[i]), probability.row(order[i]), int(e));
    }
  }

  template <class T>
  MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability, T* dlogits) const {
    weigh_by_probability_backward<Most>(t, dgate, dprobability);
    softmax_alive_backward(t, dprobability, dlogits);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("per_token", self.per_token), f("z_loss", self.z_loss);
  }
  friend constexpr bool operator==(const expert_choice&, const expert_choice&) = default;

 private:
  /// Puts e into a row's list, which stays sorted by probability; the last one falls out of a full list.
  template <class T> static void insert(vec<int> list, vec<const T> probability, int e) {
    for (int& place : list) {
      if (place >= 0 && real_part(probability[place]) >= real_part(probability[e])) continue;
      std::swap(place, e);
      if (e < 0) return;
    }
  }
};

}  // namespace moeskip::router
