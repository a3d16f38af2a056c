// Speculation is lossless: greedy token for token, sampled in distribution.
// ctest: optimised
#include <doctest/doctest.h>

#include <cmath>

#include "tiny.hpp"

using namespace tests;

namespace {

struct small : ms::variant {};
struct own_heads : ms::variant {
  using exit_head = ms::exit_head::own;
};

static_assert(
    ms::SpeculativeDecoder<ms::speculative_decoder::compose<>, ms::session<small, ms::cpu<float>>, ms::sampler>);

template <class Length> using self_drafting =
    ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, Length>;

template <class V, class B> void check_greedy(std::uint64_t i) {
  ms::config<V> c{.sizes = random_sizes(i)};
  c.exits = ms::exits_every(1, c.sizes.layers);
  ms::model<V, B> m(c, ms::seed{i});
  const auto pick = [&](int low, int high, std::uint64_t what) { return random_between(low, high, i, what); };
  const std::vector<int> prompt = random_tokens(pick(1, 30, 20), c.sizes.vocab, i);
  const ms::generation options{.max_new_tokens = pick(1, 30, 21)};
  const int exit = pick(1, c.sizes.layers - 1, 22);
  const auto ignore = [](const ms::emitted&) {};
  const ms::generated plain = ms::generate(m, prompt, options, ms::decoder::autoregressive{}, ignore);
  CAPTURE(i);
  CHECK(int(plain.tokens.size()) == options.max_new_tokens);
  const auto same = [&](const auto& decoder) {
    return ms::generate(m, prompt, options, decoder, ignore).ids() == plain.ids();
  };
  namespace length = ms::draft_length;
  CHECK(same(self_drafting<length::fixed>{.draft = {exit}, .length = {.num_speculations = pick(1, 18, 23)}}));
  CHECK(same(self_drafting<length::confidence>{.draft = {exit}, .length = {.threshold = 0.1 * pick(0, 9, 24)}}));
  CHECK(same(self_drafting<length::adaptive>{.draft = {exit}}));
  CHECK(same(self_drafting<length::utility>{.draft = {exit}}));
  if (c.sizes.layers > 2) CHECK(same(self_drafting<length::utility>{}));  // chooses among exits
}

}  // namespace

TEST_CASE("greedy self-speculation is token-identical to plain decoding: reference") {
  for (std::uint64_t i = 0; i < 60; ++i) check_greedy<small, ms::reference<float>>(i);
}
TEST_CASE("greedy self-speculation is token-identical to plain decoding: own exit heads") {
  for (std::uint64_t i = 0; i < 20; ++i) check_greedy<own_heads, ms::reference<float>>(1000 + i);
}
TEST_CASE("greedy self-speculation is token-identical to plain decoding: f32 and bf16 on the CPU") {
  for (std::uint64_t i = 0; i < 120; ++i) check_greedy<small, ms::cpu<float>>(2000 + i);
  for (std::uint64_t i = 0; i < 120; ++i) check_greedy<small, ms::cpu<ms::bf16>>(3000 + i);
}
