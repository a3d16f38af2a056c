// A rule whose threshold falls while a text grows, since an early mistake disturbs more of it than a late one:
//   threshold_t = clip(0.9 λ + 0.1 exp(−τ t / N), 0, 1)     λ = base.threshold, t tokens generated so far, of at most N
//                                                                 CALM (Schuster et al., arXiv:2207.07061)
#pragma once

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

template <ThresholdRule Rule> struct position_decay {
  static constexpr std::string_view name = "position_decay";
  static constexpr bool reads_logits = Rule::reads_logits, reads_streams = Rule::reads_streams;
  using state = typename Rule::state;
  Rule base{};
  float temperature = 4;  // τ; 0: the same threshold throughout, 0.9 λ + 0.1

  void check(layer_set exits, int layers) const {
    base.check(exits, layers);
    MOESKIP_CHECK(config_error, base.threshold <= 1, "position_decay.base.threshold must be at most 1, got ",
                  base.threshold);
    MOESKIP_CHECK(config_error, temperature >= 0 && std::isfinite(temperature),
                  "position_decay.temperature must be 0 or more, and finite, got ", temperature);
  }
  MOESKIP_HD float threshold(int step, int steps) const {
    const double decay = std::exp(-double(temperature) * step / steps);
    const double t = 0.9 * double(base.threshold) + 0.1 * decay;
    return float(t < 0 ? 0 : t > 1 ? 1 : t);
  }
  MOESKIP_HD bool leaves(const exit_moment& seen, state& s) const requires DeviceExitRule<Rule> {
    Rule rule = base;
    rule.threshold = threshold(seen.step, seen.steps);
    return rule.leaves(seen, s);
  }
  template <class T> bool leaves(const exit_evidence<T>& seen, state& s) const {
    Rule rule = base;
    rule.threshold = threshold(seen.step, seen.steps);
    return rule.template leaves<T>(seen, s);
  }
};

}  // namespace moeskip::exit_rule
