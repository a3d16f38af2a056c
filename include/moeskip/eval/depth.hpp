// What depth buys, token by token, from depth_readings: N tokens, E exits, the full depth last.
//   agreement    share of tokens whose most likely next token at an exit is the full depth's
//                                                                  "consistency", CALM, arXiv:2207.07061
//   histogram    tokens that leave at each exit
//   bits         mean surprise at an exit; bits per byte with a vocabulary of bytes
//   saved        1 − mean exit layer / L
//   trade-off    the same by threshold: every token judged where it leaves                         CALM, arXiv:2207.07061
//   by surprise  mean exit layer of the tokens in each tenth of surprise at full depth: does depth follow complexity?
// Every token sees true keys and values of all layers, as missing_kv::recompute gives them.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "moeskip/eval/depth_readings.hpp"

namespace moeskip {

struct exit_judged {
  int exit_layer = 0;
  double bits = 0, correct = 0, agreement = 0;
};

/// Where every token leaves at the same exit.
inline std::vector<exit_judged> judge_exits(const depth_readings& r) {
  const std::size_t E = r.exits.size(), N = r.tokens();
  std::vector<exit_judged> out;
  for (std::size_t e = 0; e < E; ++e) {
    exit_judged j{.exit_layer = r.exits[e]};
    for (std::size_t n = 0; n < N; ++n) {
      const int said = r.predicted[n * E + e];
      j.bits += r.bits[n * E + e], j.correct += said == r.targets[n];
      j.agreement += said == r.predicted[n * E + E - 1];
    }
    j.bits /= double(N), j.correct /= double(N), j.agreement /= double(N);
    out.push_back(j);
  }
  return out;
}

/// Tokens that leave at each exit (E) by this threshold.
inline std::vector<long long> exit_histogram(const depth_readings& r, float threshold) {
  std::vector<long long> out(r.exits.size());
  for (std::size_t n = 0; n < r.tokens(); ++n) ++out[r.exit_of(n, threshold)];
  return out;
}

/// Where every token leaves by a threshold.
struct threshold_judged {
  float threshold = 0;
  double mean_exit = 0, bits = 0, agreement = 0;

  double saved(int layers) const { return 1 - mean_exit / layers; }
};

inline threshold_judged judge_threshold(const depth_readings& r, float threshold) {
  const std::size_t E = r.exits.size(), N = r.tokens();
  threshold_judged j{.threshold = threshold};
  for (std::size_t n = 0; n < N; ++n) {
    const std::size_t e = r.exit_of(n, threshold);
    j.mean_exit += r.exits[e], j.bits += r.bits[n * E + e];
    j.agreement += r.predicted[n * E + e] == r.predicted[n * E + E - 1];
  }
  j.mean_exit /= double(N), j.bits /= double(N), j.agreement /= double(N);
  return j;
}

/// Tokens of one range of surprise.
struct surprise_group {
  long long tokens = 0;
  double bits = 0, mean_exit = 0;  // means; bits of the full depth
};

/// Tokens sorted by surprise at full depth, cut into groups of equal size, and where they leave by this threshold.
/// Throws config_error for no groups, or more of them than tokens.
inline std::vector<surprise_group> depth_by_surprise(const depth_readings& r, float threshold, int groups = 10) {
  const std::size_t E = r.exits.size(), N = r.tokens();
  MOESKIP_CHECK(config_error, groups >= 1 && std::size_t(groups) <= N, "depth_by_surprise: expected from 1 to ", N,
                " groups of ", N, " tokens, got ", groups);
  std::vector<std::size_t> order(N);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return r.bits[a * E + E - 1] < r.bits[b * E + E - 1]; });
  std::vector<surprise_group> out(static_cast<std::size_t>(groups));
  for (std::size_t i = 0; i < N; ++i) {
    surprise_group& g = out[i * out.size() / N];
    ++g.tokens, g.bits += r.bits[order[i] * E + E - 1], g.mean_exit += r.exits[r.exit_of(order[i], threshold)];
  }
  for (surprise_group& g : out) g.bits /= double(g.tokens), g.mean_exit /= double(g.tokens);
  return out;
}

}  // namespace moeskip
