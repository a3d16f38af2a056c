// Noisy top-k gating: while training, each logit gets normal noise whose size the token itself decides, so that experts
// of nearly equal score are all tried.                          Shazeer et al. 2017, arXiv:1701.06538, eq. 3 to 5
//   h_e = logit_e + n_e · softplus(s_e),  n_e ~ N(0, 1)    gates: softmax over the K best h
// A token has 2 E logits: those of the experts, then those of the noise sizes. Inference is without noise.
#pragma once

#include <string_view>

#include "moeskip/parts/router/scoring.hpp"

namespace moeskip::router {

template <int K> struct noisy_top_k {
  static constexpr std::string_view name = "noisy_top_k";
  static constexpr int experts_per_token = K;
  using made_by_warps = noisy_top_k;
  static constexpr int logits_per_expert = 2;

  float balance_loss = 0.01f;
  float z_loss = 0.001f;

  constexpr std::string_view problem() const { return auxiliary_problem(balance_loss, z_loss); }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const {
    together(t, [&](const auto& by) {
      for (int e = by.lane(); e < t.experts; e += by.lanes()) t.probability[e] = noisy(t, e);
    });
    softmax_alive(t, t.probability);
  }
  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const { choose_best<K>(t, t.probability); }
  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const {
    weigh_by_softmax_of<K>(t, [&](int e) { return noisy(t, e); });
  }

  template <class T>
  MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability, T* dlogits) const {
    weigh_by_softmax_backward<K>(t, dgate, dlogits);
    softmax_alive_backward(t, dprobability, dlogits);
    if (!t.noise) return;
    for (int e = 0; e < t.experts; ++e)  // dlogits (E) holds dh now: nothing else has been added yet
      dlogits[t.experts + e] += dlogits[e] * noise(t, e) * sigmoid(t.logits[t.experts + e]);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("balance_loss", self.balance_loss), f("z_loss", self.z_loss);
  }
  friend constexpr bool operator==(const noisy_top_k&, const noisy_top_k&) = default;

 private:
  /// h_e
  template <class T> MOESKIP_HD static T noisy(const routed_token<T>& t, int e) {
    using std::exp, std::log;
    if (!t.noise) return t.logits[e];
    const T s = t.logits[t.experts + e];
    // softplus(s) = log(1 + e^s), without overflow
    const T softplus = real_part(s) > 0 ? s + log(T(1) + exp(-s)) : log(T(1) + exp(s));
    return t.logits[e] + noise(t, e) * softplus;
  }
  template <class T> MOESKIP_HD static T noise(const routed_token<T>& t, int e) {
    const draws draw{t.noise->from, stream::router_noise};
    return T(real_t<T>(draw.normal(t.noise->step, std::uint64_t(t.layer), t.noise->row, std::uint64_t(e))));
  }
};

}  // namespace moeskip::router
