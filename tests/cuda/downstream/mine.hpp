// Policies that the library does not know: a router that takes the second best expert alone, and an exit rule.
#pragma once

#include <string_view>

#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/model/variant.hpp"

struct second_best {
  static constexpr std::string_view name = "second_best";
  static constexpr int experts_per_token = 1;

  template <class T> MOESKIP_HD void score(const moeskip::routed_token<T>& t) const {
    moeskip::router::softmax_alive(t, t.logits);
  }
  template <class T> MOESKIP_HD void choose(const moeskip::routed_token<T>& t) const {
    int best = -1, second = -1;
    for (int e = 0; e < t.experts; ++e) {
      if (!t.alive->contains(e)) continue;
      if (best < 0 || t.logits[e] > t.logits[best]) second = best, best = e;
      else if (second < 0 || t.logits[e] > t.logits[second]) second = e;
    }
    t.chosen[0] = second < 0 ? best : second;
  }
  template <class T> MOESKIP_HD void weigh(const moeskip::routed_token<T>& t) const {
    moeskip::router::weigh_by_probability<1>(t);
  }
  template <class T>
  MOESKIP_HD void backward(const moeskip::routed_token<T>& t, const T* dgate, T* dp, T* dlogits) const {
    moeskip::router::weigh_by_probability_backward<1>(t, dgate, dp);
    moeskip::router::softmax_alive_backward(t, dp, dlogits);
  }
  friend constexpr bool operator==(const second_best&, const second_best&) = default;
};

/// Leaves where the most likely token's logit leads by so much.
struct leads {
  static constexpr std::string_view name = "leads";
  static constexpr bool reads_logits = true, reads_streams = false;
  struct state {};
  float by = 0.5f;

  MOESKIP_HD bool leaves(const moeskip::exit_moment& seen, state&) const { return seen.highest - seen.second >= by; }
  template <class T> bool leaves(const moeskip::exit_evidence<T>& seen, state&) const {
    T highest = -1e30f, second = -1e30f;
    for (const T logit : seen.logits)
      if (logit > highest) second = highest, highest = logit;
      else if (logit > second) second = logit;
    return highest - second >= T(by);
  }
};
static_assert(moeskip::ExitRule<leads> && moeskip::DeviceExitRule<leads>);

struct mine : moeskip::variant {
  using router = second_best;
};
