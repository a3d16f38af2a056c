// Whether confidence means what it says: tokens in bins of an exit's confidence, and how many of each are right.
//   calibration error = Σ_b n_b / N · | mean confidence_b − share right_b |
//                       "reliability diagram" and "ECE", Guo et al., arXiv:1706.04599; equal bins of [0, 1]
// Right: the exit's most likely token is the text's next one, or the full depth's most likely one.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "moeskip/eval/depth_readings.hpp"

namespace moeskip {

struct confidence_bin {
  long long tokens = 0;
  double confidence = 0, correct = 0, agreement = 0;  // means; 0 where there are no tokens
};

/// exit: index into exits. Throws config_error unless there are bins.
inline std::vector<confidence_bin> reliability(const depth_readings& r, std::size_t exit, int bins = 10) {
  MOESKIP_CHECK(config_error, bins >= 1, "reliability: expected at least one bin, got ", bins);
  const std::size_t E = r.exits.size();
  std::vector<confidence_bin> out(static_cast<std::size_t>(bins));
  for (std::size_t n = 0; n < r.tokens(); ++n) {
    const double c = r.confidence[n * E + exit];
    confidence_bin& b = out[std::size_t(std::clamp(int(c * bins), 0, bins - 1))];
    const int said = r.predicted[n * E + exit];
    ++b.tokens, b.confidence += c;
    b.correct += said == r.targets[n], b.agreement += said == r.predicted[n * E + E - 1];
  }
  for (confidence_bin& b : out)
    if (const double n = double(b.tokens); n > 0) b.confidence /= n, b.correct /= n, b.agreement /= n;
  return out;
}

/// right: &confidence_bin::correct or &confidence_bin::agreement.
inline double calibration_error(const std::vector<confidence_bin>& bins,
                                double confidence_bin::*right = &confidence_bin::correct) {
  double sum = 0, tokens = 0;
  for (const confidence_bin& b : bins)
    sum += double(b.tokens) * std::abs(b.confidence - b.*right), tokens += double(b.tokens);
  return tokens > 0 ? sum / tokens : 0;
}

}  // namespace moeskip
