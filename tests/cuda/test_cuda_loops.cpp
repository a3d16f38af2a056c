// ctest: slow
// Loops of decoding on the device: scripts, tokens of every decoder that runs there, sampled ones by their distribution.
#include <doctest/doctest.h>

#include <cmath>
#include <set>

#include "models.hpp"

using namespace tests;

namespace {

using ms::decoder::on_device;

/// With what loops have to reckon: experts of the token before, biases, heads of low rank, a shared expert.
struct sticky_one : ms::variant {
  using router = ms::router::biased<ms::router::sticky<ms::router::top_k<2>>>;
  using shared_expert = ms::shared_expert::gated;
  using exit_head = ms::exit_head::low_rank;
  using projection = ms::projection::normed_heads;
};

template <class S, class Decoder> ms::generated run(S& s, const Decoder& decoder, const ms::generation& options,
                                                    std::uint64_t seed) {
  const std::vector<int> prompt = random_tokens(int(seed) + 3, tiny_sizes.vocab, seed);
  return ms::generate(s, prompt, options, decoder, [](const ms::emitted&) {});
}

template <class V, class W> void same_on_device(int order, const ms::generation& options) {
  ms::emulation::here() = {.order = order};
  auto m = lively_model<V, ms::emulated_cuda<W>>();
  ms::session here(m), there(m);
  const auto alike = [&](const auto& decoder) {
    for (const std::uint64_t seed : {1u, 2u}) {
      CAPTURE(decoder.name);
      CAPTURE(seed);
      const ms::generated expected = run(here, decoder, options, seed);
      const ms::generated got = run(there, on_device<std::decay_t<decltype(decoder)>>{decoder, 7}, options, seed);
      CHECK(got.ids() == expected.ids());
      CHECK(got.stats.layer_steps == expected.stats.layer_steps);
      CHECK(got.stats.rounds == expected.stats.rounds);
      CHECK(got.stats.drafted == expected.stats.drafted);
      CHECK(got.stats.accepted == expected.stats.accepted);
      CHECK(got.stats.accepted_at == expected.stats.accepted_at);
      for (std::size_t i = 0; i < got.tokens.size(); ++i) CHECK(got.tokens[i].exit_layer == expected.tokens[i].exit_layer);
    }
  };
  alike(ms::decoder::autoregressive{});
  alike(ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}});
  alike(ms::decoder::early_exit<ms::exit_rule::patience>{.rule = {.exits = 2}});
  alike(fixed_length{{.exit_layer = 2}, {.num_speculations = 3}});
  ms::emulation::here() = {};
}

}  // namespace

TEST_CASE("loops on the device make the tokens and statistics of the host's") {
  same_on_device<plain, float>(0, {.max_new_tokens = 12});
  same_on_device<sticky_one, ms::bf16>(1, {.max_new_tokens = 9});
}
