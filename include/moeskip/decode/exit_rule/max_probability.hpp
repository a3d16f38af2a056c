// Leave when the most likely token has at least this probability:   max_i p_i >= threshold,  p = softmax(logits)
#pragma once

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct max_probability {
  static constexpr std::string_view name = "max_probability";
  static constexpr bool reads_logits = true, reads_streams = false;
  using state = no_state;
  float threshold = 0.9f;

  void check(layer_set, int) const { check_threshold(name, threshold); }

  template <class T> double confidence(const exit_evidence<T>& seen) const {
    return 1 / softmax_sum<T>(seen.logits, seen.logits[argmax(seen.logits)]);
  }
  MOESKIP_HD bool leaves(const exit_moment& seen, state&) const { return seen.top_probability() >= threshold; }
  template <class T> bool leaves(const exit_evidence<T>& seen, state&) const {
    const double most = 1 / double(threshold);
    return softmax_sum<T>(seen.logits, seen.logits[argmax(seen.logits)], most) <= most;
  }
};

}  // namespace moeskip::exit_rule
