// The verification of a draft that ran nothing of the model itself: all layers, for all tokens of the round at once.
#pragma once

#include <span>

#include "moeskip/decode/session.hpp"

namespace moeskip::draft {

/// logits (n, V) of the full model for n tokens at consecutive positions from the pending one's, which is the first.
template <class Session> void full_pass(Session& s, std::span<const int> tokens, mat<typename Session::T> logits) {
  using T = typename Session::T;
  const auto scope = s.memory().scope();
  const vec<const int> ids(tokens.data(), tokens.size());                                       // (n)
  const mat<T> x = s.memory().template take<T>(index_t(tokens.size()), s.model().sizes().dim);  // (n, D)
  s.embed(x, ids, s.position());
  s.run(0, s.model().layers(), x, s.position());
  s.logits(logits, x, s.model().layers());
}

}  // namespace moeskip::draft
