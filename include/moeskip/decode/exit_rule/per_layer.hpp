// A rule with a threshold of its own at some exits:   rule.threshold at exit e is at[e] where given, else base's.
#pragma once

#include <vector>

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct layer_threshold {
  int exit_layer;
  float threshold;
};

template <ThresholdRule Rule> struct per_layer {
  static constexpr std::string_view name = "per_layer";
  static constexpr bool reads_logits = Rule::reads_logits, reads_streams = Rule::reads_streams;
  using state = typename Rule::state;
  Rule base{};
  std::vector<layer_threshold> at{};

  void check(layer_set exits, int layers) const {
    base.check(exits, layers);
    for (const layer_threshold& one : at) {
      MOESKIP_CHECK(config_error, exits.contains(one.exit_layer), "per_layer.at: exit_layer must be one of ",
                    names_of(exits), ", got ", one.exit_layer);
      check_threshold(text("per_layer.at: exit_layer ", one.exit_layer), one.threshold);
    }
  }
  template <class T> bool leaves(const exit_evidence<T>& seen, state& s) const {
    Rule rule = base;
    for (const layer_threshold& one : at)
      if (one.exit_layer == seen.exit_layer) rule.threshold = one.threshold;
    return rule.template leaves<T>(seen, s);
  }
};

}  // namespace moeskip::exit_rule
