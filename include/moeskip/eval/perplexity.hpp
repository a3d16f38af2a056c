// How well each exit predicts a text.   bits per token = mean next-token loss (nats) / ln 2; with a byte vocabulary,
// bits per byte.
#pragma once

#include <numbers>
#include <span>
#include <vector>

#include "moeskip/train/loss.hpp"

namespace moeskip {

/// Quality of every trained exit and of the full depth over `tokens`, cut into windows of `length` without overlap and
/// run `sequences` at a time; at most max_windows of them, evenly spread (0: all). Nothing is dropped out.
/// Throws config_error where the text is shorter than one window.
template <class V, class B> std::vector<exit_quality> evaluate(model<V, B>& m, std::span<const int> tokens, int length,
                                                               int sequences = 8, int max_windows = 0) {
  using T = scalar_t<B>;
  const sizes& s = m.sizes();
  MOESKIP_CHECK(config_error, length >= 1 && length <= s.context, "windows must have from 1 token to the context of ",
                s.context, ", got ", length);
  MOESKIP_CHECK(config_error, sequences >= 1, "at least one window must be run at a time, got ", sequences);
  const index_t available = (index_t(tokens.size()) - 1) / length;
  MOESKIP_CHECK(config_error, available >= 1, "the text to evaluate is too short: expected at least ", length + 1,
                " tokens, got ", tokens.size());
  const index_t windows = max_windows > 0 ? std::min<index_t>(max_windows, available) : available;
  std::vector<exit_quality> quality;
  for (int e = 1; e <= s.layers; ++e)
    if (e == s.layers || m.configuration().exits.contains(e)) quality.push_back({e, 0});

  arena memory;
  no_tape nothing(memory);
  for (index_t first = 0; first < windows; first += sequences) {
    const auto scope = memory.scope();
    const int count = int(std::min<index_t>(sequences, windows - first));
    const index_t N = index_t(count) * length;
    vec<int> inputs = memory.take<int>(N), targets = memory.take<int>(N);
    for (index_t n = 0; n < N; ++n) {
      const index_t window = (first + n / length) * available / windows;
      const std::size_t at = std::size_t(window * length + n % length);
      inputs[n] = tokens[at], targets[n] = tokens[at + 1];
    }
    const token_rows rows = batch_rows(count, length, memory);
    kv_on_arena<T> kv(memory, count, length, s.kv_groups() * s.head_size());
    mat<T> x = memory.take<T>(N, s.dim);
    m.embed(x, inputs);
    int depth = 0;
    for (exit_quality& q : quality) {
      x = m.run_layers(depth, q.exit_layer, x, kv, rows, nothing);
      depth = q.exit_layer;
      const T loss = detail::exit_loss<V, B>(m, q.exit_layer, x, targets, 0, {}, nullptr, memory);
      q.bits_per_token += double(real_part(loss)) * double(N) / double(windows * length) / std::numbers::ln2;
    }
  }
  return quality;
}

}  // namespace moeskip
