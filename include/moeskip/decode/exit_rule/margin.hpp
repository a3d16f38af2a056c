// Leave when the most likely token is ahead of the next one:   p_1 − p_2 >= threshold,  p = softmax(logits), sorted
//                                                      CALM's "softmax response" (Schuster et al., arXiv:2207.07061)
#pragma once

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct margin {
  static constexpr std::string_view name = "margin";
  static constexpr bool reads_logits = true, reads_streams = false;
  using state = no_state;
  float threshold = 0.8f;

  void check(layer_set, int) const { check_threshold(name, threshold); }

  template <class T> double confidence(const exit_evidence<T>& seen) const {
    const index_t best = argmax(seen.logits);
    return lead(seen.logits, best) / softmax_sum<T>(seen.logits, seen.logits[best]);
  }
  MOESKIP_HD bool leaves(const exit_moment& seen, state&) const { return seen.margin() >= threshold; }
  template <class T> bool leaves(const exit_evidence<T>& seen, state&) const {
    const index_t best = argmax(seen.logits);
    const double most = lead(seen.logits, best) / double(threshold);
    return softmax_sum<T>(seen.logits, seen.logits[best], most) <= most;
  }

 private:
  /// (p_1 − p_2) / p_1
  template <class T> static double lead(vec<const T> logits, index_t best) {
    T second = -std::numeric_limits<T>::infinity();
    for (index_t i = 0; i < logits.size(); ++i)
      if (i != best && logits[i] > second) second = logits[i];
    return 1 - std::exp(double(second - logits[best]));
  }
};

}  // namespace moeskip::exit_rule
