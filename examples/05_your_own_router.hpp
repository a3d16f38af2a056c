// A router of one's own: the two best experts, from a softmax with a temperature τ. Below 1 tokens are more decided,
// above they spread.
//   p = softmax(logits / τ)   gate = softmax of the two best logits / τ, which is p_k / (p_1 + p_2)
// The functions see one token and touch nothing else, so every backend can run them. It stands in a header of its own,
// for a .cu that makes it a kernel: tests/cuda/downstream has one.
#pragma once

#include <string_view>

#include "moeskip/parts/router/scoring.hpp"

struct tempered {
  static constexpr std::string_view name = "tempered";  // checkpoints remember it
  static constexpr int experts_per_token = 2;
  float temperature = 1.f;
  float balance_loss = 0.01f;  // keeps experts equally busy; optional

  template <class T> MOESKIP_HD void score(const moeskip::routed_token<T>& t) const {
    for (int e = 0; e < t.experts; ++e) t.probability[e] = t.logits[e] / T(temperature);
    moeskip::router::softmax_alive(t, t.probability);
  }
  template <class T> MOESKIP_HD void choose(const moeskip::routed_token<T>& t) const {
    moeskip::router::choose_best<2>(t, t.probability);
  }
  template <class T> MOESKIP_HD void weigh(const moeskip::routed_token<T>& t) const {
    for (int k = 0; k < 2; ++k) t.gate[k] = t.logits[t.chosen[k]] / T(temperature);
    moeskip::softmax(t.gate, t.gate, 2);
  }
  template <class T>
  MOESKIP_HD void backward(const moeskip::routed_token<T>& t, const T* dgate, T* dp, T* dlogits) const {
    moeskip::router::weigh_by_softmax_backward<2>(t, dgate, dlogits);
    moeskip::router::softmax_alive_backward(t, dp, dlogits);
    for (int e = 0; e < t.experts; ++e) dlogits[e] /= T(temperature);
  }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("temperature", self.temperature), f("balance_loss", self.balance_loss);
  }
  friend constexpr bool operator==(const tempered&, const tempered&) = default;
};
static_assert(moeskip::Router<tempered>);
