// Leave after layer E, whatever the token.
#pragma once

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct fixed {
  static constexpr std::string_view name = "fixed";
  static constexpr bool reads_logits = false, reads_streams = false;
  using state = no_state;
  int exit_layer = 0;  // E: one of the config's exits, or the full depth

  void check(layer_set exits, int layers) const {
    exits.insert(layers);
    MOESKIP_CHECK(config_error, exits.contains(exit_layer), "fixed.exit_layer must be one of ", names_of(exits),
                  ", got ", exit_layer);
  }
  MOESKIP_HD bool leaves(const exit_moment& seen, state&) const { return seen.exit_layer == exit_layer; }
  template <class T> bool leaves(const exit_evidence<T>& seen, state&) const { return seen.exit_layer == exit_layer; }
};

}  // namespace moeskip::exit_rule
