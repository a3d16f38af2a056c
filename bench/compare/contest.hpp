// Decoders on the same prompts, each in turn with plain decoding of the model that skips.
#pragma once

#include <deque>
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
  std::vector<std::vector<int>> said{};  // for each prompt, the last time
  long texts = 0, same = 0;     // that can be compared, and those that plain decoding of the same model says too
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
  ms::sampling sampling{};  // greedy
};

/// Runs `decoder` on model `m` between plain decodings of `skipping`, each time in a new session: what was learned
/// before does not help. Greedy texts are compared with `plain`'s. `also`: work that is counted elsewhere.
template <class Skipping, class M, class Decoder>
void compete(contestant& c, Skipping& skipping, M& m, const setting& set, const Decoder& decoder,
             const contestant* plain, ms::decode_work* also = nullptr) {
  const auto run = [&](auto& in, const std::vector<int>& prompt, const auto& chosen) {
    return ms::generate(in.session(), prompt, {.max_new_tokens = set.tokens, .sampling = set.sampling}, chosen,
                        [](const ms::emitted&) {});
  };
  using plain_session = ms::counted_session<typename Skipping::variant_type, typename Skipping::backend_type>;
  plain_session steady(skipping);
  run(steady, set.prompts.front(), ms::decoder::autoregressive{});  // warm-up
  for (std::size_t p = 0; p < set.prompts.size(); ++p)
    for (int repeat = 0; repeat < set.repeats; ++repeat) {
      const double before = run(steady, set.prompts[p], ms::decoder::autoregressive{}).stats.seconds;
      ms::counted_session<typename M::variant_type, typename M::backend_type> fresh(m);
      if (also) *also = {};
      const ms::generated made = run(fresh, set.prompts[p], decoder);
      const double after = run(steady, set.prompts[p], ms::decoder::autoregressive{}).stats.seconds;
      c.against.ratios.push_back((before + after) / 2 / made.stats.seconds);
      c.against.sum += made.stats;
      c.rates.push_back(made.stats.tokens_per_second());
      c.done += fresh.done.total();
      if (also) c.done += *also;
      c.said.resize(p + 1), c.said[p] = made.ids();
      if (plain && set.sampling.greedy()) ++c.texts, c.same += c.said[p] == plain->said[p];
    }
}

/// Collects the rows.
template <class Skipping> struct contest {
  Skipping& model;
  setting greedily, sampled;
  std::deque<contestant> rows{};  // references to them stay valid

  /// bits: per byte, of what it would say. plain: the row of the same model decoded plainly, where there is one.
  template <class M, class Decoder> const contestant& add(contestant row, const contestant* plain, M& m,
                                                          const Decoder& decoder, const setting& set,
                                                          ms::decode_work* also = nullptr) {
    std::fprintf(stderr, "compare: %s …\n", row.name.c_str());
    compete(rows.emplace_back(std::move(row)), model, m, set, decoder, plain, also);
    return rows.back();
  }
};

}  // namespace bench
