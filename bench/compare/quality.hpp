// Bits per byte as a decoder decodes: it is made to say a given text, token by token, and its surprise at each is taken
// from what it would have drawn from. So what exits leave behind in keys and values counts, and so does what a lossy
// acceptance accepts.
#pragma once

#include <cmath>
#include <numbers>
#include <span>
#include <vector>

#include "moeskip/eval/counted_session.hpp"
#include "moeskip/moeskip.hpp"

namespace bench {

namespace ms = moeskip;

/// texts (n, N + 1), each begun with its first token. For decoders of one token a round.
template <class V, class B, class Decoder>
double bits_per_token(ms::model<V, B>& m, std::span<const std::vector<int>> texts, const Decoder& decoder) {
  using T = ms::scalar_t<B>;
  ms::counted_session<V, B> runner(m);
  runner.listen();
  auto& s = runner.session();
  ms::sampler greedy(ms::sampling{});
  double bits = 0, tokens = 0;
  for (const std::vector<int>& text : texts) {
    typename Decoder::template on<ms::session<V, B>> rounds(decoder, s);
    s.prefill({text.data(), 1});
    s.stats = {};
    for (std::size_t at = 1; at < text.size(); ++at, ++tokens) {
      rounds.round(s, greedy, int(text.size() - at), [](const ms::emitted&) {});
      const ms::vec<const T> logits = runner.said();
      const T best = logits[ms::argmax(logits)];
      bits +=
          (std::log(ms::exit_rule::softmax_sum<T>(logits, best)) + double(best - logits[text[at]])) / std::numbers::ln2;
      s.truncate(int(at));  // what it would have said is forgotten, its own keys and values are not
      s.push(text[at]);
    }
    if constexpr (requires { rounds.finish(s); }) rounds.finish(s);
  }
  return bits / tokens;
}

/// Of tokens that layers below `exit_layer` draft, drawn at temperature 1, when typical acceptance lets them stand:
///   P(x) = a(x) q(x) + p(x) Σ_y (1 − a(y)) q(y)        a(x) 1 where x is accepted, 0 where it is not
/// q what the exit says, p the full model: a rejected token is drawn again from p. Exact acceptance makes P = p.
template <class V, class B> double typical_bits(ms::model<V, B>& m, std::span<const std::vector<int>> texts,
                                                const ms::acceptance::typical& accept, int exit_layer) {
  using T = ms::scalar_t<B>;
  ms::session<V, B> s(m);
  ms::sampler as_it_is(ms::sampling{.temperature = 1});
  double bits = 0, tokens = 0;
  for (const std::vector<int>& text : texts) {
    const auto scope = s.memory().scope();
    const ms::index_t N = ms::index_t(text.size()) - 1, vocab = m.sizes().vocab;
    const ms::mat<T> x = s.memory().template take<T>(N, m.sizes().dim);
    const ms::mat<T> q = s.memory().template take<T>(N, vocab), p = s.memory().template take<T>(N, vocab);
    const ms::vec<T> logits = s.memory().template take<T>(vocab);
    s.embed(x, {text.data(), N}, 0);
    s.run(0, exit_layer, x, 0);
    s.logits(q, x, exit_layer);
    s.run(exit_layer, m.layers(), x, 0);
    s.logits(p, x, m.layers());
    const auto normalise = [&](ms::vec<T> row) {
      std::copy(row.begin(), row.end(), logits.begin());
      as_it_is.distribution<T>(row, logits);
    };
    for (ms::index_t n = 0; n < N; ++n, ++tokens) {
      normalise(q.row(n)), normalise(p.row(n));
      const int next = text[std::size_t(n) + 1];
      double rejected = 0, stands = 0;
      T sure = 2, unsure = -1;  // acceptance is a threshold on p: what lies beyond one that was asked for is known
      for (int id = 0; id < int(vocab); ++id) {
        const T mass = p(n, id);
        const bool accepted = mass >= sure || (mass > unsure && accept.accepts<T>(p.row(n), q.row(n), id, 0));
        if (accepted) sure = std::min(sure, mass);
        else unsure = std::max(unsure, mass), rejected += double(q(n, id));
        if (id == next && accepted) stands = double(q(n, id));
      }
      bits -= std::log2(stands + rejected * double(p(n, next)));
    }
  }
  return bits / tokens;
}

}  // namespace bench
