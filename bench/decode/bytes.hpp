// What speculation of a fixed exit and length buys along a trace by the bytes of weights alone, as if nothing else took time:
// a draft step reads the layers below the exit and the head, a verify the layers above once, in MoE layers the experts that
// its rows visit together.
#pragma once

#include "moeskip/model/weights_read.hpp"
#include "trace.hpp"

namespace bench {

struct bytes_forecast {
  double speedup = 1;
  int exit_layer = 0, length = 0;  // that reach it; 0: none gains
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

/// Of tokens from `first` on: the prompt is not decoded.
template <class V> bytes_forecast best_by_bytes(const ms::config<V>& c, const trace& t, int first) {
  const int L = c.sizes.layers;
  const double head = ms::head_weights_read(c.sizes);
  const auto read = [&](int from, int to, int position, int rows) {
    double sum = 0;
    for (int l = from; l < to; ++l) sum += ms::layer_weights_read(c, l, detail::union_of(t, l, position, rows));
    return sum;
  };
  bytes_forecast best;
  const double plain = read(0, L, first, 1) + head;
  for (const int e : t.readings.exits)
    for (int d = 1; e >= 2 && e < L && d <= 12; ++d) {
      const double shallow = read(0, e, first, 1);
      double bytes = 0;
      int made = 0;
      for (int at = first; at + d + 1 < t.tokens();) {
        int accepted = 0;
        while (accepted < d && t.predicted(at + accepted, e) == t.next(at + accepted)) ++accepted;
        bytes += d * (shallow + head) + shallow + read(e, L, at, d + 1) + head;
        at += accepted + 1, made += accepted + 1;
      }
      if (const double speedup = made * plain / bytes; speedup > best.speedup) best = {speedup, e, d};
    }
  return best;
}

}  // namespace bench
