// Bits per byte as a decoder decodes: it is made to say a given text, token by token, and its surprise at each is taken from the
// logits that it would have drawn from. So what exits leave behind in keys and values counts.
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

}  // namespace bench
