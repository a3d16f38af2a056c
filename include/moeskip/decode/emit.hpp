// The end of a round that makes one token.
#pragma once

#include "moeskip/decode/sampler.hpp"
#include "moeskip/decode/session.hpp"

namespace moeskip {

/// Draws the token behind the pending one from logits (V), which come from exit_layer, adds it to the session and hands
/// it to sink(emitted).
template <class T, class Session, class Sink>
void emit_next(Session& s, sampler& draw_from, vec<const T> logits, int exit_layer, Sink&& sink) {
  const vec<T> p = s.memory().template take<T>(logits.size());
  draw_from.distribution<T>(p, logits);
  const draws draw{draw_from.options().seed, stream::sampling};
  const int token = sampler::pick<T>(p, draw.uniform_double(std::uint64_t(s.position())));
  ++s.stats.rounds;
  s.push(token);
  sink(emitted{token, exit_layer, false});
}

}  // namespace moeskip
