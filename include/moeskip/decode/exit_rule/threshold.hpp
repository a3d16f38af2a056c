// What exit rules with a threshold share. Three of them read the softmax p of the logits, and two of those need not sum
// it up:   p_max >= threshold   <=>   Σ_i exp(logit_i − logit_max) <= 1 / threshold
#pragma once

#include <cmath>
#include <limits>
#include <string>
#include <string_view>

#include "moeskip/base/bit_set.hpp"
#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/decode/sampler.hpp"

namespace moeskip::exit_rule {

/// The state of rules that judge an exit by itself.
struct no_state {};

/// Throws config_error unless the threshold is above 0 and finite.
inline void check_threshold(std::string_view rule, float threshold) {
  MOESKIP_CHECK(config_error, threshold > 0 && threshold < std::numeric_limits<float>::infinity(), rule,
                ".threshold must be above 0 and finite (above 1: no token leaves early), got ", threshold);
}

/// "1, 2", for messages.
inline std::string names_of(layer_set exits) {
  std::string names;
  for (int e = 0; e < layer_set::capacity; ++e)
    if (exits.contains(e)) names += text(names.empty() ? "" : ", ", e);
  return names;
}

/// Σ_i exp(logit_i − best) over logits (V), or some number above `most` where the sum is.
template <class T>
double softmax_sum(vec<const T> logits, T best, double most = std::numeric_limits<double>::infinity()) {
  double total = 0;
  for (index_t i = 0; i < logits.size() && !(total > most); ++i) total += std::exp(double(logits[i] - best));
  return total;
}

}  // namespace moeskip::exit_rule
