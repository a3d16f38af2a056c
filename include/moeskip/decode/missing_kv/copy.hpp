// Layers that a token skipped get the keys and values of the last layer that ran, as they are. Nearly free, and bad: a
// layer's queries do not fit another one's keys. In CALM's experiment ROUGE-L fell from 38.24 with propagated states to
// 23.02 with copied vectors (arXiv:2207.07061). Here to be measured against.
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/concepts/exit_rule.hpp"
#include "moeskip/decode/session.hpp"

namespace moeskip::missing_kv {

struct copy {
  static constexpr std::string_view name = "copy";

  template <class Session> struct on {
    using T = typename Session::T;
    on(const copy&, Session&) {}

    mat<T> stream(Session& s) { return s.memory().template take<T>(1, s.model().sizes().dim); }
    void run(Session& s, int first, int last, mat<T> x, int at) { s.run(first, last, x, at); }
    void left(Session& s, int depth, mat<T>, int at) {
      const kv_layer<T> from = s.keys_values(depth - 1);
      for (int l = depth; l < s.model().layers(); ++l) {
        const kv_layer<T> to = s.keys_values(l);
        std::ranges::copy(from.keys.plane(0).row(at), to.keys.plane(0).row(at).begin());
        std::ranges::copy(from.values.plane(0).row(at), to.values.plane(0).row(at).begin());
        if (to.experts.size()) to.experts.plane(0)(at, 0) = -1;  // it chose no experts here
      }
    }
    void finish(Session&) {}
  };
};

}  // namespace moeskip::missing_kv
