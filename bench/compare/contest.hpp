// Decoders on the same prompts, each in turn with plain decoding of the same model.
#pragma once

#include <string>
#include <vector>

#include "../decode/speculation.hpp"
#include "moeskip/eval/counted_session.hpp"
#include "moeskip/moeskip.hpp"

namespace bench {

/// A row of the table.
struct contestant {
  std::string key{}, name{};
  double bits = 0;       // per byte
  comparison against{};  // plain decoding of the model that skips
  ms::decode_work done{};
  long texts = 0, same = 0;     // prompts, and those continued as plain decoding of the same model does
  std::vector<double> rates{};  // tokens a second, of each repetition

  double per_token(double what) const { return what / against.sum.tokens; }
  double bytes() const { return per_token(done.bytes(sizeof(ms::bf16), sizeof(float))); }
  double flop() const { return per_token(done.flop()); }
  double layers() const { return per_token(double(against.sum.layer_steps)); }
  double experts() const { return per_token(double(against.sum.experts_read)); }
  double tokens_per_second() const { return median(rates); }
};

struct setting {
  std::vector<std::vector<int>> prompts;
  int tokens = 0, repeats = 0;
};

/// Runs `decoder` on model `m` between plain decodings of `skipping`, each time in a new session: what was learned before does
/// not help. `also`: work that is counted elsewhere.
template <class Skipping, class M, class Decoder> void compete(contestant& c, Skipping& skipping, M& m,
                                                               const setting& set, const Decoder& decoder,
                                                               ms::decode_work* also = nullptr) {
  const auto run = [&](auto& in, const std::vector<int>& prompt, const auto& chosen) {
    return ms::generate(in.session(), prompt, {.max_new_tokens = set.tokens}, chosen, [](const ms::emitted&) {});
  };
  using plain_session = ms::counted_session<typename Skipping::variant_type, typename Skipping::backend_type>;
  plain_session steady(skipping);
  run(steady, set.prompts.front(), ms::decoder::autoregressive{});  // warm-up
  for (const std::vector<int>& prompt : set.prompts)
    for (int repeat = 0; repeat < set.repeats; ++repeat) {
      const ms::generated before = run(steady, prompt, ms::decoder::autoregressive{});
      ms::counted_session<typename M::variant_type, typename M::backend_type> fresh(m);
      if (also) *also = {};
      const ms::generated made = run(fresh, prompt, decoder);
      const ms::generated after = run(steady, prompt, ms::decoder::autoregressive{});
      c.against.ratios.push_back((before.stats.seconds + after.stats.seconds) / 2 / made.stats.seconds);
      c.against.sum += made.stats;
      c.rates.push_back(made.stats.tokens_per_second());
      c.done += fresh.done;
      if (also) c.done += *also;
      ++c.texts, c.same += made.ids() == before.ids();
    }
}

}  // namespace bench
