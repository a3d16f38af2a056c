// The decoders of a trained model of examples/models against plain decoding, measured and predicted:
//   by bytes     what is read, from the tokens' exits, the rounds and the experts visited
//   by layers    as if each layer of a call took as long, whatever its rows read: so it is where a model is small
#pragma once

#include "../../examples/models/models.hpp"
#include "../decode/speculation.hpp"
#include "amounts.hpp"
#include "lines.hpp"
#include "moeskip/formats/text.hpp"
#include "moeskip/formats/tokenizer/byte.hpp"
#include "moeskip/model/checkpoint.hpp"

namespace bench {

inline void time_skipping(const std::string& model, const std::string& text) {
  constexpr int fewer = 22, tokens = 150, from_prompt = 64, drafted = 2, exit = 2;
  auto m = ms::load<models::all_moe, ms::cuda<ms::bf16>>(model);
  const auto& c = m.configuration();
  const auto prompts = prompts_of(ms::tokenizer::byte::encode(ms::read_text(text)), 8, from_prompt);
  const double seen = from_prompt + tokens / 2.0, L = m.layers();

  using two_tokens = ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>;
  const two_tokens drafts{{.exit_layer = exit}, {.num_speculations = drafted}};
  const ms::decoder::early_exit<> leaves{.rule = {.threshold = 0.9f}};
  const std::string of_drafts = "self-speculation, exit 2, 2 drafts", of_exits = "early exit at 0.9";

  // What the texts say of themselves.
  amount plain, by_exits, by_drafts;
  double layers_plain = 0, layers_exits = 0, layers_drafts = 0;
  ms::decode_stats accepted;
  ms::session s(m);
  for (const std::vector<int>& prompt : prompts) {
    const auto made_by = [&](const auto& decoder) {
      return ms::generate(s, prompt, {.max_new_tokens = tokens}, decoder, [](const ms::emitted&) {});
    };
    const ms::generated early = made_by(leaves), speculative = made_by(drafts);
    plain += double(tokens) * of_token(c, seen), layers_plain += tokens * L;
    for (const ms::emitted& e : early.tokens) {
      int asked = 1;  // the head that the token came from, and those of exits below
      for (int l = 1; l < e.exit_layer; ++l) asked += c.exits.contains(l);
      by_exits += of_layers(c, 0, e.exit_layer, seen) + of_heads(c, asked) + of_missing(c, e.exit_layer);
      layers_exits += e.exit_layer;
    }
    by_exits += of_experts(c, double(early.stats.experts_read));
    by_drafts += double(speculative.stats.rounds) * of_round(c, exit, drafted, seen) +
                 of_experts(c, double(speculative.stats.experts_read));
    layers_drafts += speculative.stats.rounds * (drafted * exit + L);
    accepted += speculative.stats;
  }
  const auto predicted = [&](const std::string& what, const amount& read, double layers) {
    line(what + ", predicted by bytes", plain.bytes(kept_in_float) / read.bytes(kept_in_float), "times plain");
    line(what + ", predicted by layers", layers_plain / layers, "times plain");
  };
  predicted(of_exits, by_exits, layers_exits), predicted(of_drafts, by_drafts, layers_drafts);
  line(of_drafts + ", accepted", accepted.acceptance_rate(), "");

  // Loops on the device, against plain decoding there.
  std::vector<double> exits, rounds, rates;
  attempt("loops of the trained model", [&] {
    for (const std::vector<int>& prompt : prompts) {
      const auto time = [&](const auto& decoder) { return time_loop(s, prompt, decoder, fewer, tokens).seconds; };
      const double one = time(ms::decoder::autoregressive{});
      rates.push_back(1 / one);
      exits.push_back(one / time(leaves)), rounds.push_back(one / time(drafts));
    }
    line("loop: plain decoding of the trained model", median(rates), "tokens/s");
    line("loop: " + of_exits, median(exits), "times plain");
    line("loop: " + of_drafts, median(rounds), "times plain");
  });

  // By the host, in new sessions.
  const auto time = [&](const std::string& what, const auto& decoder) {
    attempt(what, [&] {
      comparison all;
      for (const std::vector<int>& prompt : prompts) compare(all, m, prompt, tokens, decoder, 3);
      line(what, all.speedup(), "times plain");
    });
  };
  time("kernels: " + of_exits, leaves), time("kernels: " + of_drafts, drafts);
  time("kernels: default decoder", models::all_moe::decoder{});
}

}  // namespace bench
