// What a trained model does with a text, token by token: the experts that it visits, and what each of its exits would
// have said. A large model of random weights can be made to follow it (replay.hpp), and bytes can be counted along it
// (bytes.hpp).
#pragma once

#include <span>
#include <vector>

#include "moeskip/eval/exit_readings.hpp"
#include "moeskip/moeskip.hpp"

namespace bench {

namespace ms = moeskip;

struct trace {
  std::vector<int> text;       // (N + 1)
  ms::exit_readings readings;  // of tokens 0 … N−1: predicted and confidence at every exit
  ms::exit_readings seconds;   // its "confidence" is the id that an exit thinks second best
  std::vector<int> experts;    // (N, L, K); -1 where a layer is dense
  int layers = 0, per_token = 0;

  int tokens() const { return int(text.size()) - 1; }
  const int* chosen(int position, int layer) const {
    return experts.data() + (std::size_t(position) * std::size_t(layers) + std::size_t(layer)) * std::size_t(per_token);
  }
  /// What the exit says after the token at `position`, and how sure it is.
  int predicted(int position, int exit_layer) const { return readings.predicted[at(position, exit_layer)]; }
  double confidence(int position, int exit_layer) const { return readings.confidence[at(position, exit_layer)]; }
  int second(int position, int exit_layer) const { return int(seconds.confidence[at(position, exit_layer)]); }
  int next(int position) const { return text[std::size_t(position) + 1]; }

 private:
  std::size_t at(int position, int exit_layer) const {
    std::size_t e = 0;
    while (readings.exits[e] != exit_layer) ++e;
    return std::size_t(position) * readings.exits.size() + e;
  }
};

/// Not a rule to leave by, but to read by.
struct second_best {
  static constexpr bool reads_logits = true, reads_streams = false;
  template <class T> double confidence(const ms::exit_evidence<T>& seen) const {
    const int first = ms::argmax<T>(seen.logits);
    int second = first ? 0 : 1;
    for (int i = 0; i < int(seen.logits.size()); ++i)
      if (i != first && seen.logits[i] > seen.logits[second]) second = i;
    return second;
  }
};

/// Takes down the experts of every token: a tape for run_layers.
class routing_recorder : public ms::no_tape {
 public:
  routing_recorder(ms::arena& memory, trace& to) : no_tape(memory), to_(to) {}
  template <class T> void routed(int layer, const ms::routing<T>& r, const ms::token_rows& rows) {
    for (ms::index_t n = 0; n < rows.size(); ++n)
      std::copy_n(r.chosen.row(n).data(), to_.per_token,
                  to_.experts.data() + (rows.position[n] * to_.layers + layer) * to_.per_token);
  }

 private:
  trace& to_;
};

/// The prompt, continued by the model itself up to its context, greedily, and all that is to be known of it.
template <class V, class B> trace record(ms::model<V, B>& m, std::span<const int> prompt) {
  trace t;
  t.layers = m.layers(), t.per_token = V::router::experts_per_token;
  t.text.assign(prompt.begin(), prompt.end());
  const auto made = ms::generate(m, prompt, {}, ms::decoder::autoregressive{}, [](const ms::emitted&) {});
  for (const int id : made.ids()) t.text.push_back(id);
  t.experts.assign(std::size_t(t.tokens() * t.layers * t.per_token), -1);
  t.readings.exits = t.seconds.exits = ms::exits_of("replay", m);
  ms::arena memory;
  routing_recorder watch(memory, t);
  ms::read_exits(m, ms::exit_rule::max_probability{}, t.text, t.readings, watch);
  ms::no_tape unwatched(memory);
  ms::read_exits(m, second_best{}, t.text, t.seconds, unwatched);
  return t;
}

}  // namespace bench
