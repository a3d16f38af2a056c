// No heap allocation inside a step: every operator new of the program is counted.
#include <doctest/doctest.h>

#include <atomic>

#include "tiny.hpp"
#include "watched_new.hpp"

namespace {
std::atomic<long> allocations{0};
}
void tests::on_allocation(std::size_t) { ++allocations; }

using namespace tests;

namespace {

struct recipe : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::linear;
};
template <class E> struct dropping : recipe { using expert_dropout = E; };
constexpr ms::config<recipe> shape{.sizes = {.layers = 4,
                                             .dim = 32,
                                             .heads = 4,
                                             .kv_heads = 2,
                                             .ffn = 24,
                                             .experts = 4,
                                             .vocab = 16,
                                             .context = 400,
                                             .moe_every = 2},
                                   .exits = ms::exits_after(1, 2)};

/// Allocations between the first token of a generation and the last.
template <class Session, class Decoder> long between_tokens(Session& s, const Decoder& decoder, int tokens) {
  const std::vector<int> prompt(20, 3);
  long first = -1, last = 0;
  ms::generate(s, prompt, {.max_new_tokens = tokens}, decoder, [&](const ms::emitted&) {
    last = allocations;
    if (first < 0) first = last;
  });
  return last - first;
}

/// The least of several tries: a thread that slept through the warm-up allocates its scratch when it first
/// takes a task.
template <class Try> long least(Try&& allocated) {
  long fewest = allocated();
  for (int i = 0; i < 5 && fewest > 0; ++i) fewest = std::min(fewest, allocated());
  return fewest;
}

}  // namespace

TEST_CASE("decoding allocates nothing per token") {
  ms::model<recipe, ms::cpu<ms::bf16>> m(shape);
  const auto check = [&](const auto& decoder) {
    ms::session s(m);
    INFO(decoder.name);
    between_tokens(s, decoder, 10);
    // What depends on the position grows by doubling, so the way from 30 tokens of context to 400 costs a few
    // allocations, and not one for each token.
    CHECK(between_tokens(s, decoder, 380) <= 20);
    CHECK(least([&] { return between_tokens(s, decoder, 380); }) == 0);
  };
  check(ms::decoder::autoregressive{});
  check(ms::decoder::early_exit<>{.rule = {.threshold = 0.1f}});
  check(fixed_length{});
  check(ms::decoder::early_exit<ms::exit_rule::cosine, ms::missing_kv::recompute>{.rule = {.threshold = 0.1f}});
  check(recipe::decoder{});
  check(ms::speculative_decoder::compose<ms::draft::lookup>{});
}

TEST_CASE_TEMPLATE("a training step allocates nothing once memory has grown to the largest one", E,
                   ms::expert_dropout::bernoulli, ms::expert_dropout::cluster, ms::expert_dropout::output,
                   ms::expert_dropout::hidden) {
  using V = dropping<E>;
  ms::config<V> c{.sizes = shape.sizes, .exits = shape.exits};
  if constexpr (requires { c.expert_dropout.scope; }) c.expert_dropout.scope = ms::mask_scope::token;
  ms::model<V, ms::cpu<float>> m(c);
  const std::vector<int> text(2000, 5);
  ms::random_windows data(text, 4, 24, ms::seed{1});
  const auto check = [&](auto&& t) {
    for (int i = 0; i < 12; ++i) t.step(data);
    CHECK(least([&] {
            const long before = allocations;
            for (int i = 0; i < 6; ++i) t.step(data);
            return allocations - before;
          }) == 0);
  };
  check(ms::trainer<V, ms::cpu<float>>(m, {}));
  check(ms::trainer<V, ms::cpu<float>>(m, {.distill = 0.5, .optimizer = {.cautious = true}, .ema = 0.9}));
  check(ms::trainer<V, ms::cpu<float>, ms::muon>(m, {}));
}
