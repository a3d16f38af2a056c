// Leave when the prediction is far from uniform:   1 − H(p) / log V >= threshold,  H(p) = − Σ_i p_i log p_i,
// p = softmax(logits). The threshold is on one minus the normalised entropy, so that higher is more cautious, as with
// every rule.                                          BranchyNet (Teerapittayanon et al., arXiv:1709.01686),
// normalised
#pragma once

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct entropy {
  static constexpr std::string_view name = "entropy";
  static constexpr bool reads_logits = true, reads_streams = false;
  using state = no_state;
  float threshold = 0.8f;

  void check(layer_set, int) const { check_threshold(name, threshold); }

  template <class T> double confidence(const exit_evidence<T>& seen) const {
    const double best = double(seen.logits[argmax(seen.logits)]);
    double total = 0, weighted = 0;  // Σ e^d and Σ d e^d, d = logit − best: H = log Σ e^d − Σ d e^d / Σ e^d
    for (const T logit : seen.logits) {
      const double d = double(logit) - best, w = std::exp(d);
      total += w;
      if (w > 0) weighted += d * w;
    }
    const double most = std::log(double(seen.logits.size()));
    return most > 0 ? 1 - (std::log(total) - weighted / total) / most : 1;
  }
  MOESKIP_HD bool leaves(const exit_moment& seen, state&) const {
    const float most = std::log(float(seen.vocabulary));
    return (most > 0 ? 1 - seen.entropy() / most : 1.f) >= threshold;
  }
  template <class T> bool leaves(const exit_evidence<T>& seen, state&) const {
    return confidence(seen) >= double(threshold);
  }
};

}  // namespace moeskip::exit_rule
