// Trains exit_rule::probe on texts: for each exit a logistic regression of "the exit's argmax is the full depth's" on
// the residual stream, token by token with AdaGrad's rates (Duchi et al., JMLR 12, 2011). The model stays as it is.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "moeskip/decode/exit_rule/probe.hpp"
#include "moeskip/eval/exit_readings.hpp"

namespace moeskip {

struct probe_options {
  double rate = 0.05;  // of the first step
  int epochs = 2;      // times through all texts
};

namespace detail {

/// Not a rule: keeps the streams of all tokens at all exits while read_exits passes them by.
template <class T> struct stream_keeper {
  static constexpr bool reads_logits = false, reads_streams = false;
  std::span<const int> exits;
  std::vector<T>* streams;  // (N, E, D)

  template <class U> double confidence(const exit_evidence<U>& seen) const {
    std::size_t e = 0;
    while (exits[e] != seen.exit_layer) ++e;
    const std::size_t D = std::size_t(seen.stream.size());
    std::copy(seen.stream.begin(), seen.stream.end(),
              streams->begin() + std::ptrdiff_t((std::size_t(seen.position) * exits.size() + e) * D));
    return 0;
  }
};

}  // namespace detail

/// Throws config_error for options that mean nothing, a model without exits, and texts that it cannot read.
template <class V, class B>
exit_rule::probe fit_probe(model<V, B>& m, std::span<const std::vector<int>> texts, const probe_options& o = {}) {
  using T = scalar_t<B>;
  MOESKIP_CHECK(config_error, o.rate > 0 && o.epochs >= 1 && !texts.empty(),
                "fit_probe: expected a rate above 0, at least one epoch and at least one text, got ", o.rate, ", ",
                o.epochs, " and ", texts.size());
  expect_texts("fit_probe", m, texts);
  exit_readings r;
  r.exits = exits_of("fit_probe", m);
  const std::size_t E = r.exits.size(), D = std::size_t(m.sizes().dim);
  exit_rule::probe out{.dim = int(D), .weights = std::vector<float>(std::size_t(m.layers()) * (D + 1))};
  std::vector<double> squares(out.weights.size(), 1e-8);  // of gradients, summed
  std::vector<T> streams;
  arena memory;
  no_tape watch(memory);
  for (int epoch = 0; epoch < o.epochs; ++epoch)
    for (const std::vector<int>& text : texts) {
      streams.resize((text.size() - 1) * E * D);
      read_exits(m, detail::stream_keeper<T>{r.exits, &streams}, text, r, watch);
      for (std::size_t n = 0; n < r.targets.size(); ++n)
        for (std::size_t e = 0; e + 1 < E; ++e) {
          const vec<const T> x(streams.data() + (n * E + e) * D, index_t(D));
          const std::size_t at = std::size_t(r.exits[e]) * (D + 1);
          float* const w = &out.weights[at];
          const bool agrees = r.predicted[n * E + e] == r.predicted[n * E + E - 1];
          const double error = 1 / (1 + std::exp(-exit_rule::probe::score(x, w))) - agrees;
          double square = 1e-12;
          for (const T& v : x) square += double(v) * double(v);
          const double scale = 1 / std::sqrt(square / double(D));
          for (std::size_t i = 0; i <= D; ++i) {
            const double gradient = error * (i < D ? double(x[index_t(i)]) * scale : 1);
            squares[at + i] += gradient * gradient;
            w[i] -= float(o.rate * gradient / std::sqrt(squares[at + i]));
          }
        }
    }
  return out;
}

}  // namespace moeskip
