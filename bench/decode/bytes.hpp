// What speculation of a fixed exit and length buys along a trace by the bytes of weights alone, as if nothing else took
// time: a draft step reads the layers below the exit and the head, a verify the layers above once, in MoE layers the
// experts that its rows visit together.
#pragma once

#include <span>

#include "moeskip/model/weights_read.hpp"
#include "trace.hpp"

namespace bench {

struct bytes_forecast {
  double speedup = 1;
  int exit_layer = 0, length = 0;  // that reach it; 0: none gains
  double unsure = 0;               // of a tree: where the draft is less confident, the second best is verified, too
};

namespace detail {

/// Distinct experts of the tokens [first, first + count) in a layer, as far as the trace goes.
inline double union_of(const trace& t, int layer, int first, int count) {
  ms::expert_set all;
  for (int n = first; n < std::min(first + count, t.tokens()); ++n)
    for (int k = 0; k < t.per_token; ++k) all.insert(t.chosen(n, layer)[k]);
  return all.size();
}

}  // namespace detail

/// Of tokens from `first` on: the prompt is not decoded. A tree, for confidences `unsure` above 0, has a leaf beside
/// every drafted token that the exit is less sure of: its second choice. That costs no draft step, but leaves run the
/// shallow layers as well, in one call, and visit experts, taken for those of the tokens behind. A right leaf saves the
/// token that would end the round: the verify has logits behind the leaf, too.
template <class V>
bytes_forecast best_by_bytes(const ms::config<V>& c, const trace& t, int first, std::span<const double> unsure) {
  const int L = c.sizes.layers;
  const double head = ms::head_weights_read(c.sizes);
  const auto read = [&](int from, int to, int position, int rows) {
    double sum = 0;
    for (int l = from; l < to; ++l) sum += ms::layer_weights_read(c, l, detail::union_of(t, l, position, rows));
    return sum;
  };
  bytes_forecast best;
  const double plain = read(0, L, first, 1) + head;
  const auto try_out = [&](int e, int d, double bar) {
    const double shallow = read(0, e, first, 1);
    double bytes = 0;
    int made = 0;
    for (int at = first; at + d + 1 < t.tokens();) {
      int accepted = 0, leaves = 0;
      while (accepted < d && t.predicted(at + accepted, e) == t.next(at + accepted)) ++accepted;
      for (int i = 0; i < d; ++i) leaves += t.confidence(at + i, e) < bar;
      const int wrong = at + accepted;
      const bool leaf = accepted < d && t.confidence(wrong, e) < bar && t.second(wrong, e) == t.next(wrong);
      bytes += d * (shallow + head) + shallow + read(e, L, at, d + 1 + leaves) + head;
      if (leaves) bytes += read(0, e, at + d + 1, leaves);
      at += accepted + 1 + leaf, made += accepted + 1 + leaf;
    }
    if (const double speedup = made * plain / bytes; speedup > best.speedup) best = {speedup, e, d, bar};
  };
  for (const int e : t.readings.exits)
    for (int d = 1; e >= 2 && e < L && d <= 12; ++d)
      for (const double bar : unsure) try_out(e, d, bar);
  return best;
}

}  // namespace bench
