// The K best experts by softmax score. With softmax before the selection, gates are probabilities over all experts
// (OLMoE, OpenMoE), or these divided by their sum (Mixtral, Qwen3). With softmax after the selection, gates are the
// softmax over the K chosen logits, the same function as the renormalised one.
#pragma once

#include <string_view>

#include "moeskip/parts/router/scoring.hpp"

namespace moeskip::router {

enum class softmax_order { before_selection, after_selection };

template <int K> struct top_k {
  static constexpr std::string_view name = "top_k";
  static constexpr int experts_per_token = K;
  using made_by_warps = top_k;

  softmax_order order = softmax_order::before_selection;
  bool renormalise = true;     // divide the gates by their sum (after_selection always sums to one)
  float balance_loss = 0.01f;  // weights of the auxiliary losses (ops/route.hpp)
  float z_loss = 0.001f;

  constexpr std::string_view problem() const {
    if (order != softmax_order::before_selection && order != softmax_order::after_selection)
      return "router.order must be 0 (softmax before the selection) or 1 (after it)";
    return auxiliary_problem(balance_loss, z_loss);
  }

  template <class T> MOESKIP_HD void score(const routed_token<T>& t) const { softmax_alive(t, t.logits); }
  template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const { choose_best<K>(t, t.logits); }
  template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const {
    if (among_chosen()) weigh_by_softmax<K>(t, t.logits);
    else weigh_by_probability<K>(t);
  }

  template <class T>
  MOESKIP_HD void backward(const routed_token<T>& t, const T* dgate, T* dprobability, T* dlogits) const {
    if (among_chosen()) weigh_by_softmax_backward<K>(t, dgate, dlogits);
    else weigh_by_probability_backward<K>(t, dgate, dprobability);
    softmax_alive_backward(t, dprobability, dlogits);
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    f("order", self.order), f("renormalise", self.renormalise);
    f("balance_loss", self.balance_loss), f("z_loss", self.z_loss);
  }
  friend constexpr bool operator==(const top_k&, const top_k&) = default;

 private:
  MOESKIP_HD constexpr bool among_chosen() const { return renormalise || order == softmax_order::after_selection; }
};

}  // namespace moeskip::router
