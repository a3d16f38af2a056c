// Leave when the residual stream has stopped turning:   cos(x_e, x_e') >= threshold,  x_e' the stream at the exit
// before. The cheap test: no unembedding until a token leaves. The first exit has none before it and lets no token go.
//                                            CALM's "hidden-state saturation" (Schuster et al., arXiv:2207.07061)
#pragma once

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct cosine {
  static constexpr std::string_view name = "cosine";
  static constexpr bool reads_logits = false, reads_streams = true;
  using state = no_state;
  float threshold = 0.95f;

  void check(layer_set, int) const { check_threshold(name, threshold); }

  template <class T> double confidence(const exit_evidence<T>& seen) const {
    if (seen.previous_stream.empty()) return -1;
    double product = 0, now = 0, before = 0;
    for (index_t i = 0; i < seen.stream.size(); ++i) {
      const double a = double(seen.stream[i]), b = double(seen.previous_stream[i]);
      product += a * b, now += a * a, before += b * b;
    }
    const double lengths = std::sqrt(now) * std::sqrt(before);
    return lengths > 0 ? std::min(product / lengths, 1.0) : -1;
  }
  template <class T> bool leaves(const exit_evidence<T>& seen, state&) const {
    return confidence(seen) >= double(threshold);
  }
};

}  // namespace moeskip::exit_rule
