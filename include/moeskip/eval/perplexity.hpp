// How well each exit predicts a text.
//   bits per token = − 1/N Σ_n log2 p(token n | those before)    with a byte vocabulary bits per byte
//   perplexity     = 2^(bits per token)                          Jelinek et al. 1977, doi:10.1121/1.2016299
#pragma once

#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "moeskip/eval/windows.hpp"

namespace moeskip {

/// From 1, where every token was certain; V for one who knows nothing of a vocabulary of V.
inline double perplexity(double bits_per_token) { return std::exp2(bits_per_token); }

/// Quality of every trained exit and of the full depth over `tokens`. Nothing is dropped out, unless `tape` says so
/// (eval/routing.hpp). Throws config_error where the text is shorter than one window.
template <class V, class B, class Tape> std::vector<exit_quality> evaluate(model<V, B>& m, std::span<const int> tokens,
                                                                           const window_options& options, Tape& tape) {
  using T = scalar_t<B>;
  const sizes& s = m.sizes();
  std::vector<exit_quality> quality;
  for (int e = 1; e <= s.layers; ++e)
    if (e == s.layers || m.configuration().exits.contains(e)) quality.push_back({e, 0});

  arena& memory = tape.memory();
  const index_t windows = for_windows(tokens, s.context, options, memory, [&](const window_group& g) {
    kv_on_arena<T> kv(memory, g.sequences, g.length, s.kv_groups() * s.head_size());
    mat<T> x = memory.take<T>(g.inputs.size(), s.dim);
    const vec<T> losses = memory.take<T>(g.inputs.size());
    m.embed(x, g.inputs);
    int depth = 0;
    for (exit_quality& q : quality) {
      x = m.run_layers(depth, q.exit_layer, x, kv, g.rows, tape);
      depth = q.exit_layer;
      detail::exit_losses<V, B>(m, losses, q.exit_layer, x, g.targets, 0, {}, nullptr, memory);
      settle(m.backend());
      q.bits_per_token += double(real_part(detail::mean<T>(losses))) * double(g.inputs.size());
    }
  });
  for (exit_quality& q : quality) q.bits_per_token /= double(windows * options.length) * std::numbers::ln2;
  return quality;
}

template <class V, class B> std::vector<exit_quality> evaluate(model<V, B>& m, std::span<const int> tokens, int length,
                                                               int sequences = 8, int max_windows = 0) {
  arena memory;
  no_tape nothing(memory);
  return evaluate(m, tokens, window_options{length, sequences, max_windows}, nothing);
}

}  // namespace moeskip
