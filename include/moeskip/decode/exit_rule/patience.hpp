// Leave when so many exits in a row, this one included, predict the same token.
//                                                              PABEE (Zhou et al., arXiv:2006.04152), on the argmax
#pragma once

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct patience {
  static constexpr std::string_view name = "patience";
  static constexpr bool reads_logits = true, reads_streams = false;
  struct state {
    int token = -1, agreed = 0;  // the last exit's prediction, and how many in a row made it
  };
  int exits = 2;

  void check(layer_set, int) const {
    MOESKIP_CHECK(config_error, exits >= 1, "patience.exits must be at least 1, got ", exits);
  }

  template <class T> bool leaves(const exit_evidence<T>& seen, state& s) const {
    return agrees(argmax(seen.logits), s);
  }
  MOESKIP_HD bool leaves(const exit_moment& seen, state& s) const { return agrees(seen.token, s); }

 private:
  MOESKIP_HD bool agrees(int token, state& s) const {
    s.agreed = token == s.token ? s.agreed + 1 : 1;
    s.token = token;
    return s.agreed >= exits;
  }
};

}  // namespace moeskip::exit_rule
