// Decoding, verifying and prefill of OLMoE-1B-7B (presets::olmoe, random bf16 weights), beside what reading allows.
//   loop      one kernel that stays on the device makes all tokens
//   kernels   the host asks for a call's kernels one by one
//   graphs    the same kernels as a CUDA graph
// The cache keeps keys and values in float. What reading allows is told for that, and for a cache in bf16, which would
// read less: a share of the latter is the stricter one.
#pragma once

#include "amounts.hpp"
#include "lines.hpp"
#include "moeskip/model/presets/olmoe.hpp"

namespace bench {

inline ms::config<ms::presets::olmoe> olmoe_1b_7b() {
  ms::config<ms::presets::olmoe> c{
      .sizes = {.layers = 16, .dim = 2048, .heads = 16, .ffn = 1024, .experts = 64, .vocab = 50304, .context = 4096},
      .exits = ms::exits_every(4, 16)};  // they cost nothing where no decoder asks
  c.router.renormalise = false;
  return c;
}

template <class Driver> struct olmoe_on {
  using variant = ms::presets::olmoe;
  using backend = ms::cuda<ms::bf16, Driver>;

  ms::config<variant> config = olmoe_1b_7b();
  ms::model<variant, backend> m{config, ms::seed{1}};
  ms::session<variant, backend> s{m};

  /// Caches and temporaries go to the device when it first asks for them, so that happens before anything is timed.
  olmoe_on() {
    for (int i = 0; i < 2; ++i) s.prefill(ids(2049));
  }
  std::vector<int> ids(int count) const { return some_ids(count, config.sizes.vocab); }
};

inline constexpr int context = 512;

/// A rate of decoding, and its shares of what reading allows.
inline void decode_lines(const std::string& by, double seconds, const amount& of_token, double bytes_per_second) {
  line(by + ": decode, context 512", 1 / seconds, "tokens/s");
  for (const auto& [name, of_key] : {std::pair{"f32", kept_in_float}, std::pair{"bf16", kept_in_bf16}}) {
    const double least = of_token.bytes(of_key) / bytes_per_second;
    line(ms::text(by, ": decode, what reading allows, keys in ", name), 1 / least, "tokens/s");
    line(ms::text(by, ": decode, share of it, keys in ", name), least / seconds, "");
  }
}

/// Decoders whose loop runs on the device, of tokens between 257 and 768 of a text.
inline void time_loops(olmoe_on<ms::driver::device>& o, double bytes_per_second) {
  constexpr int fewer = 64, more = 576, length = context + 1 - (fewer + more) / 2;
  const auto prompt = o.ids(length);
  const auto& c = o.config;
  const auto time = [&](const auto& decoder, const ms::sampling& by = {}) {
    return time_loop(o.s, prompt, decoder, fewer, more, by);
  };
  const ms::decoder::autoregressive plain{};
  const amount token = of_token(c, context);
  const double one = time(plain).seconds;
  decode_lines("loop", one, token, bytes_per_second);
  const auto beyond_greedy = [&](const char* what, const ms::sampling& by) {
    attempt(what, [&] { line(what, (time(plain, by).seconds - one) * 1e6, "us"); });
  };
  beyond_greedy("loop: a token drawn by temperature, beyond a greedy one", {.temperature = 1});
  beyond_greedy("loop: a token drawn by top-k 50, beyond a greedy one", {.temperature = 1, .top_k = 50});
  beyond_greedy("loop: a token drawn by top-p 0.9, beyond a greedy one", {.temperature = 1, .top_p = 0.9f});

  for (const int e : {4, 8, 12}) {
    const std::string what = ms::text("loop: early exit after ", e, " of 16 layers");
    attempt(what, [&] {
      const ms::decoder::early_exit<ms::exit_rule::fixed> leaves{.rule = {.exit_layer = e}};
      const double seconds = time(leaves).seconds;
      const amount read = of_layers(c, 0, e, context) + of_experts(c, e * 8) + of_heads(c, 1) + of_missing(c, e);
      line(what, one / seconds, "times plain");
      line(what + ", predicted by bytes", token.bytes(kept_in_float) / read.bytes(kept_in_float), "times plain");
    });
  }
  // Random weights accept next to nothing, so here the cost of a round is what is compared.
  for (const int d : {1, 2, 4}) {
    const std::string what = ms::text("loop: a round of ", d, " drafts from exit 4");
    attempt(what, [&] {
      using drafts = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>;
      const loop_cost cost = time(drafts{{.exit_layer = 4}, {.num_speculations = d}});
      const amount read = of_round(c, 4, d, context) + of_experts(c, cost.experts_read / cost.rounds);
      line(what, cost.seconds * cost.tokens / cost.rounds / one, "tokens' time");
      line(what + ", predicted by bytes", read.bytes(kept_in_float) / token.bytes(kept_in_float), "tokens' time");
      line(what + ", tokens made", cost.tokens / cost.rounds, "");
    });
  }
}

/// Calls of 1, 2, 4 and 8 tokens that the host asks for, behind 512.
template <class Driver> void time_calls(const std::string& by, olmoe_on<Driver>& o, double bytes_per_second) {
  auto& s = o.s;
  s.prefill(o.ids(context + 1));
  double one = 0, bytes_of_one = 0;
  for (const int n : {1, 2, 4, 8}) {
    const auto scope = s.memory().scope();
    const auto x = s.memory().template take<float>(n, o.config.sizes.dim),
               logits = s.memory().template take<float>(n, o.config.sizes.vocab);
    const auto ids = o.ids(n);
    const auto verify = [&] {
      s.embed(x, {ids.data(), n}, context);
      s.run(0, o.m.layers(), x, context);
      s.logits(logits, x, o.m.layers());
    };
    const double t = median_time(40, verify);
    s.meter().reset_experts_read();
    verify();
    const amount read = of_layers(o.config, 0, o.m.layers(), context + n) + of_heads(o.config, 1) +
                        of_experts(o.config, double(s.meter().experts_read()));
    const double bytes = read.bytes(kept_in_bf16);
    if (n == 1) {
      one = t, bytes_of_one = bytes;
      decode_lines(by, t, read, bytes_per_second);
      continue;
    }
    const std::string what = ms::text(by, ": verify ", n);
    line(what, t * 1e6, "us");
    line(what + ", its bytes", bytes / 1e9, "GB");
    line(what + ", against decode", t / one, "times");
    line(what + ", over its bytes at the read rate", t / (bytes / bytes_per_second), "times");
    line(what + ", over its bytes at decode's rate", t / one / (bytes / bytes_of_one), "times");
  }
}

inline void time_prefill() {
  olmoe_on<ms::driver::device> o;
  const auto prompt = o.ids(2049);
  const double t = median_time(7, [&] { o.s.prefill(prompt); });
  line("prefill 2048", 2048 / t, "tokens/s");
  // A training step's arithmetic without exits, of which forward is a third.
  line("prefill 2048, rate", ms::training_flops(o.m, 1, 2048, {}, {}, 0) / 3 / t / 1e12, "TFLOP/s");
}

}  // namespace bench
