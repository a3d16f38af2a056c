// Plain decoding: one full pass for each token. What every other decoder is measured against.
#pragma once

#include <string_view>

#include "moeskip/decode/emit.hpp"

namespace moeskip::decoder {

struct autoregressive {
  static constexpr std::string_view name = "autoregressive";

  template <class Session> struct on {
    using T = typename Session::T;
    explicit on(const autoregressive&, Session&) {}

    template <class Sink> void round(Session& s, sampler& draw_from, int, Sink&& sink) {
      const auto scope = s.memory().scope();
      auto& m = s.model();
      mat<T> x = s.memory().template take<T>(1, m.sizes().dim),
             logits = s.memory().template take<T>(1, m.sizes().vocab);
      const int at = s.position();
      s.embed(x);
      s.run(0, m.layers(), x, at);
      s.logits(logits, x, m.layers());
      emit_next<T>(s, draw_from, logits.row(0), m.layers(), sink);
    }
  };
};

}  // namespace moeskip::decoder
