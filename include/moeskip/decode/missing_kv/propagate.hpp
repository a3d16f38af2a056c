// Layers that a token skipped get the keys and values of its exit state, through their own projections (CALM's state
// propagation, arXiv:2207.07061, section 4.1): cheap, since no expert is touched, and approximate, so early exit
// changes the tokens behind it.
#pragma once

#include <string_view>

#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/decode/session.hpp"

namespace moeskip::missing_kv {

struct propagate {
  static constexpr std::string_view name = "propagate";

  template <class Session> struct on {
    using T = typename Session::T;
    on(const propagate&, Session&) {}

    mat<T> stream(Session& s) { return s.memory().template take<T>(1, s.model().sizes().dim); }
    void run(Session& s, int first, int last, mat<T> x, int at) { s.run(first, last, x, at); }
    void left(Session& s, int depth, mat<T> x, int at) { s.propagate(depth, x, at); }
    void finish(Session&) {}
  };
};

}  // namespace moeskip::missing_kv
