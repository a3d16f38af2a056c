// The default decoder, which speculates only where that pays, against plain decoding.
//   trained     on the model itself (small: it lives in the caches)
//   draft_model the same with a smaller trained model that drafts
//   replayed    on a larger one of random weights that follows what the trained one does (replay.hpp)
//   random      nothing to win, since the shallow layers know nothing of the deep ones: losses are the price of trying
#pragma once

#include "../measure.hpp"
#include "bytes.hpp"
#include "foresight.hpp"
#include "replay.hpp"
#include "shapes.hpp"

namespace bench {

/// A decoder's time, and that of plain decoding before and after it, on some prompts, several times. All of them in new
/// sessions: what was learned before does not help, and memory that nobody has touched yet costs all of them the same.
struct comparison {
  std::vector<double> ratios{};  // plain over the decoder
  ms::decode_stats sum{};
  std::array<long, ms::layer_set::capacity + 1> drafted_at_exit{};  // accepted tokens by the exit that proposed them

  double quantile(double share) const {
    std::vector<double> sorted = ratios;
    std::sort(sorted.begin(), sorted.end());
    return sorted[std::size_t(share * double(sorted.size() - 1))];
  }
  double speedup() const { return quantile(0.5); }
};

/// yardstick: the model that decodes plainly.
template <class M, class Yardstick, class Decoder> void compare(comparison& to, M& m, Yardstick& yardstick,
                                                                std::span<const int> prompt, int tokens,
                                                                const Decoder& decoder, int repeats) {
  const auto run = [&]<class Other>(Other& by, const auto& chosen) {
    ms::session<typename Other::variant_type, typename Other::backend_type> fresh(by);
    return ms::generate(fresh, prompt, {.max_new_tokens = tokens}, chosen, [](const ms::emitted&) {});
  };
  const ms::decoder::autoregressive plain{};
  run(yardstick, plain);  // warm-up
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const double before = run(yardstick, plain).stats.seconds;
    const ms::generated made = run(m, decoder);
    const double after = run(yardstick, plain).stats.seconds;
    to.ratios.push_back((before + after) / 2 / made.stats.seconds);
    to.sum += made.stats;
    for (const ms::emitted& e : made.tokens)
      if (e.drafted) ++to.drafted_at_exit[std::size_t(e.exit_layer)];
  }
}

template <class M, class Decoder>
void compare(comparison& to, M& m, std::span<const int> prompt, int tokens, const Decoder& decoder, int repeats) {
  compare(to, m, m, prompt, tokens, decoder, repeats);
}

/// "2: 310, 4: 12", tokens by exit.
inline std::string by_exit(const comparison& c) {
  std::string all;
  for (std::size_t e = 0; e < c.drafted_at_exit.size(); ++e)
    if (c.drafted_at_exit[e]) all += ms::text(all.empty() ? "" : ", ", e, ": ", c.drafted_at_exit[e]);
  return all.empty() ? "none" : all;
}

/// Lines of what was compared; `factor` names the speed-up.
inline double write(report& out, const std::string& name, const std::string& factor, const comparison& c) {
  const ms::decode_stats& s = c.sum;
  out.line(ms::text(name, ".drafted"), double(s.drafted) / s.tokens, "a token", "",
           ms::text(s.accepted, " of ", s.drafted, " accepted; by exit ", by_exit(c)));
  std::string positions;
  for (std::size_t i = 0; i < s.drafted_at.size() && s.drafted_at[i]; ++i)
    positions += ms::text(i ? " " : "", std::round(100. * s.accepted_at[i] / s.drafted_at[i]), "%");
  if (!positions.empty())
    out.line(ms::text(name, ".acceptance"), s.acceptance_rate(), "ratio", "drafted", "by position " + positions);
  out.line(ms::text(name, ".experts_per_token"), double(s.experts_read) / s.tokens, "experts");
  out.line(factor, c.speedup(), "ratio", "plain decoding",
           ms::text("half of the pairs from ", c.quantile(0.25), " to ", c.quantile(0.75)));
  return c.speedup();
}

/// Random weights, whose exits disagree and whose probabilities spread.
template <class V>
double random_weights(report& out, const std::string& name, const ms::config<V>& c, int tokens, int repeats) {
  ms::model<V, weights_in_bf16> m(c, ms::seed{1});
  for (auto& w : m.block()) w = ms::bf16(1.5f * float(w));
  std::vector<std::vector<int>> prompts(3);
  for (int i = 0; i < 48; ++i) prompts[std::size_t(i) % 3].push_back((i * 37 + 5) % c.sizes.vocab);
  comparison all;
  for (const std::vector<int>& prompt : prompts) compare(all, m, prompt, tokens, typename V::decoder{}, repeats);
  return write(out, "speculation." + name, "speculation." + name + ".speedup", all);
}

/// Pieces of a text, each `length` bytes, spread over it.
inline std::vector<std::vector<int>> prompts_of(const std::vector<int>& text, std::size_t count, std::size_t length) {
  MOESKIP_CHECK(ms::config_error, text.size() >= count * length, "the text for prompts: expected at least ",
                count * length, " bytes, got ", text.size());
  std::vector<std::vector<int>> prompts;
  for (std::size_t i = 0; i < count; ++i) {
    const auto from = text.begin() + std::ptrdiff_t(i * (text.size() - length) / count);
    prompts.emplace_back(from, from + std::ptrdiff_t(length));
  }
  return prompts;
}

/// A trained model on prompts that it has not seen, itself and replayed.
template <class V> double trained(report& out, const std::string& name, ms::model<V, weights_in_bf16>& m,
                                  const std::vector<std::vector<int>>& prompts) {
  comparison itself, replayed;
  const int tokens = m.sizes().context - int(prompts.front().size());
  trace t;
  ms::model<following<V>, weights_in_bf16> large(enlarged(m.configuration(), 8, t), ms::seed{1});
  const ms::speculative_decoder::compose<replayed_self> follows_trace{.draft = {.from = &t}};
  constexpr double chains[] = {0}, leaves[] = {0.3, 0.5, 0.7, 0.9};
  bytes_forecast forecast, tree;
  std::vector<double> forecasts, with_leaves, by_rule, gains;
  for (const std::vector<int>& prompt : prompts) {
    compare(itself, m, prompt, tokens, typename V::decoder{}, 5);
    t = record(m, prompt);
    compare(replayed, large, prompt, tokens, follows_trace, 2);
    forecast = best_by_bytes(large.configuration(), t, int(prompt.size()) - 1, chains);
    tree = best_by_bytes(large.configuration(), t, int(prompt.size()) - 1, leaves);
    forecasts.push_back(forecast.speedup), with_leaves.push_back(tree.speedup);
    const auto by_utility = [&](known_experts known) {
      return utility_by_bytes(large.configuration(), t, int(prompt.size()) - 1, known);
    };
    by_rule.push_back(by_utility(known_experts::on_average));
    gains.push_back(by_utility(known_experts::exactly) / by_rule.back());
  }
  const std::string prefix = "speculation." + name;
  const double small = write(out, prefix, prefix + ".speedup", itself);
  const double great = write(out, prefix + ".replayed", prefix + ".replayed_speedup", replayed);
  out.line(prefix + ".bytes_forecast", median(forecasts), "ratio", "plain decoding",
           ms::text("of the best fixed exit and length in hindsight; the last prompt's: ", forecast.exit_layer, ", ",
                    forecast.length));
  out.line(prefix + ".tree_forecast", median(with_leaves), "ratio", "plain decoding",
           ms::text("the same with leaves where the draft is unsure; the last prompt's: ", tree.exit_layer, ", ",
                    tree.length, ", below ", tree.unsure));
  out.line(prefix + ".utility_forecast", median(by_rule), "ratio", "plain decoding",
           "of lengths by utility at the best exit in hindsight");
  const auto [least, most] = std::minmax_element(gains.begin(), gains.end());
  out.line(prefix + ".foreknowing_gain", median(gains), "ratio", "utility_forecast, prompt by prompt",
           ms::text("if a verify's experts were known before; from ", *least, " to ", *most));
  return std::min(small, great);
}

/// The default decoder of a trained model against plain decoding of a baseline: as large, trained without anything to
/// skip, on the same prompts; both themselves, and each replayed on a large model of its own shape.
template <class V, class Baseline>
void over_baseline(report& out, const std::string& name, ms::model<V, weights_in_bf16>& m,
                   ms::model<Baseline, weights_in_bf16>& baseline, const std::vector<std::vector<int>>& prompts) {
  comparison itself, replayed;
  const int tokens = m.sizes().context - int(prompts.front().size());
  trace t, plain;
  ms::model<following<V>, weights_in_bf16> large(enlarged(m.configuration(), 8, t), ms::seed{1});
  ms::model<following<Baseline>, weights_in_bf16> large_baseline(enlarged(baseline.configuration(), 8, plain),
                                                                 ms::seed{1});
  const ms::speculative_decoder::compose<replayed_self> follows_trace{.draft = {.from = &t}};
  for (const std::vector<int>& prompt : prompts) {
    compare(itself, m, baseline, prompt, tokens, typename V::decoder{}, 5);
    t = record(m, prompt), plain = record(baseline, prompt);
    compare(replayed, large, large_baseline, prompt, tokens, follows_trace, 2);
  }
  const auto line = [&](const std::string& what, const comparison& c) {
    out.line(ms::text("speculation.", name, what), c.speedup(), "ratio", "the baseline, plainly",
             ms::text("half of the pairs from ", c.quantile(0.25), " to ", c.quantile(0.75)));
  };
  line(".over_baseline", itself), line(".replayed_over_baseline", replayed);
}

/// A small trained model drafts.
template <class V, class Small> void draft_model(report& out, const std::string& name, ms::model<V, weights_in_bf16>& m,
                                                 Small& small, const std::vector<std::vector<int>>& prompts) {
  using decoder = ms::speculative_decoder::compose<ms::draft::small_model<Small>>;
  comparison all;
  for (const std::vector<int>& prompt : prompts)
    compare(all, m, prompt, m.sizes().context - int(prompt.size()), decoder{.draft = {&small}}, 5);
  write(out, name, name + ".speedup", all);
}

}  // namespace bench
