// Early exit at a calibrated threshold: how often an exit says what the full depth would have said, on text that was
// not calibrated on and on text that early exits wrote themselves, and what it saves.
#pragma once

#include "moeskip/eval/calibration.hpp"
#include "speculation.hpp"

namespace bench {

namespace detail {

struct agreement {
  double same = 0, layers = 0;  // of a token, on average
};

/// Where tokens of texts leave by this threshold.
template <class V, class B>
agreement agreement_on(ms::model<V, B>& m, const std::vector<std::vector<int>>& texts, float threshold) {
  ms::arena memory;
  ms::no_tape watch(memory);
  ms::exit_readings r;
  r.exits = ms::exits_of("bench", m);
  const std::size_t E = r.exits.size();
  agreement sum;
  double tokens = 0;
  for (const std::vector<int>& text : texts) {
    ms::read_exits(m, ms::exit_rule::max_probability{}, text, r, watch);
    for (std::size_t n = 0; n < r.targets.size(); ++n, ++tokens) {
      const std::size_t e = r.exit_of(n, threshold);
      sum.same += r.predicted[n * E + e] == r.predicted[n * E + E - 1], sum.layers += r.exits[e];
    }
  }
  return {sum.same / tokens, sum.layers / tokens};
}

/// Share of the tokens behind a prompt that the full depth would have written.
template <class V, class B>
double greedy_share(ms::model<V, B>& m, const std::vector<std::vector<int>>& texts, std::size_t prompt_length) {
  ms::arena memory;
  ms::no_tape watch(memory);
  ms::exit_readings r{.exits = {m.layers()}};
  double same = 0, tokens = 0;
  for (const std::vector<int>& text : texts) {
    ms::read_exits(m, ms::exit_rule::max_probability{}, text, r, watch);
    for (std::size_t n = prompt_length - 1; n < r.targets.size(); ++n, ++tokens) same += r.predicted[n] == r.targets[n];
  }
  return same / tokens;
}

}  // namespace detail

/// Calibrated on the first half of the text, measured on the second.
template <class V>
void early_exit(report& out, const std::string& name, ms::model<V, weights_in_bf16>& m, const std::vector<int>& text) {
  constexpr std::size_t calibrated_on = 200, measured_on = 50, prompt_length = 64;
  const std::size_t length = std::size_t(m.sizes().context) + 1;
  const auto middle = text.begin() + std::ptrdiff_t(text.size() / 2);
  const auto known = prompts_of({text.begin(), middle}, calibrated_on, length);
  const std::vector<int> unseen(middle, text.end());
  const ms::calibration c = ms::calibrate(m, known, {.tolerance = 0.05, .confidence = 0.95});
  const detail::agreement held_out = detail::agreement_on(m, prompts_of(unseen, measured_on, length), c.threshold);
  out.line(name + ".threshold", c.threshold, "probability");
  out.line(name + ".agreement", held_out.same, "ratio", "tokens",
           "tolerance 0.05, confidence 0.95; calibrated on windows of one text, which are not independent");
  out.line(name + ".layers_per_token", held_out.layers, "layers", "", ms::text("of ", m.layers()));

  const auto rule = c.as<ms::exit_rule::max_probability>();
  const auto timed = [&](const std::string& missing, const auto& decoder) {
    comparison all;
    std::vector<std::vector<int>> written;
    for (const std::vector<int>& prompt : prompts_of(unseen, 16, prompt_length)) {
      compare(all, m, prompt, int(length - 1 - prompt_length), decoder, 3);
      written.push_back(prompt);
      const auto made = ms::generate(m, prompt, {.max_new_tokens = int(length - 1 - prompt_length)}, decoder,
                                     [](const ms::emitted&) {});
      for (const int id : made.ids()) written.back().push_back(id);
    }
    out.line(ms::text(name, ".", missing, ".generated_agreement"), detail::greedy_share(m, written, prompt_length),
             "ratio", "tokens", "that the full depth would have written there, too");
    out.line(ms::text(name, ".", missing, ".layers_per_token"), double(all.sum.layer_steps) / all.sum.tokens, "layers");
    out.line(ms::text(name, ".", missing, ".speedup"), all.speedup(), "ratio", "plain decoding",
             ms::text("half of the pairs from ", all.quantile(0.25), " to ", all.quantile(0.75)));
    return all.speedup();
  };
  using propagate = ms::decoder::early_exit<ms::exit_rule::max_probability, ms::missing_kv::propagate>;
  using recompute = ms::decoder::early_exit<ms::exit_rule::max_probability, ms::missing_kv::recompute>;
  const double faster =
      std::max(timed("propagate", propagate{.rule = rule}), timed("recompute", recompute{.rule = rule}));
  out.line(name + ".speedup", faster, "ratio", "plain decoding", "the faster of the two");
}

}  // namespace bench
