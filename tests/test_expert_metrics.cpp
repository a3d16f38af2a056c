// How experts are used, against cases counted by hand.
#include <doctest/doctest.h>

#include <cmath>

#include "moeskip/eval/counted_session.hpp"
#include "moeskip/eval/drops.hpp"
#include "moeskip/eval/expert_observer.hpp"
#include "moeskip/eval/expert_parallel.hpp"
#include "moeskip/eval/machine_limits.hpp"
#include "moeskip/eval/perplexity.hpp"
#include "moeskip/eval/saturation.hpp"
#include "moeskip/eval/touched_experts.hpp"
#include "tiny.hpp"

using namespace tests;
using doctest::Approx;

namespace {

ms::vec<const int> ids(const std::vector<int>& v) { return {v.data(), ms::index_t(v.size())}; }

/// Choices and probabilities of N rows, and where they stand: what an observer is shown.
struct shown {
  std::vector<double> probability;  // (N, E)
  std::vector<int> chosen;          // (N, K)
  int experts, per_token;
  std::vector<int> slot, position;  // (N)

  ms::routing<double> routing() {
    const ms::index_t N = ms::index_t(slot.size());
    probability.resize(std::size_t(N * experts));
    return {{probability.data(), N, experts}, {chosen.data(), N, per_token}, {}, {}};
  }
  ms::token_rows rows() const { return {ids(slot), ids(position), {}}; }
};

}  // namespace

TEST_CASE("the confidence of gates: how much of the router's probability its choices have") {
  shown s{{0.5, 0.3, 0.2, 0.1, 0.1, 0.8}, {0, 1, 2, 0}, 3, 2, {0, 0}, {0, 1}};
  ms::arena memory;
  ms::routing_observer watch(memory);
  watch.routed(0, s.routing(), s.rows());
  const ms::layer_routing l = watch.layers().front();
  CHECK(l.confidence() == Approx((0.8 + 0.9) / 2));
  CHECK(l.first_share() == Approx((0.5 / 0.8 + 0.8 / 0.9) / 2));
}

TEST_CASE("a capacity drops what comes last, first choices before second ones") {
  ms::arena memory;
  {  // expert 0 takes 4 of 8 assignments: the third and fourth token of the second sequence go without
    shown s{{}, {0, 0, 0, 1, 0, 1, 0, 0}, 2, 1, {0, 0, 0, 0, 1, 1, 1, 1}, {0, 1, 2, 3, 0, 1, 2, 3}};
    ms::drop_observer watch(memory, 1, 4, 2);
    watch.routed(0, s.routing(), s.rows());
    CHECK(watch.layers()[0].ratio(0) == 0);
    CHECK(watch.layers()[0].ratio(1) == 0.5);
    CHECK(watch.all().ratio() == 0.25);
    ms::drop_observer roomy(memory, 2, 4, 2);
    roomy.routed(0, s.routing(), s.rows());
    CHECK(roomy.all().ratio() == 0);
  }
  {  // capacity 2: expert 0 is the first choice of the last two tokens, so the first two lose it as their second
    shown s{{}, {1, 0, 2, 0, 0, 1, 0, 2}, 3, 2, {0, 0, 0, 0}, {0, 1, 2, 3}};
    ms::drop_observer watch(memory, 0.75, 4, 4);
    watch.routed(3, s.routing(), s.rows());
    CHECK(watch.layers()[0].assigned.empty());
    const ms::drop_counts& c = watch.layers()[3];
    CHECK(c.ratio(0) == 0.5);
    CHECK(c.ratio(1) == 0.5);
    CHECK(c.ratio(2) == 0);
    CHECK(c.ratio(3) == 0);
  }
  CHECK_THROWS_AS(ms::drop_observer(memory, 0, 4), ms::config_error);
  CHECK_THROWS_AS(ms::drop_observer(memory, 1, 4, 5), ms::config_error);
}

TEST_CASE("saturation: how many choices of an earlier checkpoint stay") {
  const std::vector<int> early{0, 1, 2, 3}, late{1, 0, 2, 4}, none{-1, -1, 5, 6};
  CHECK(ms::saturation(early, late, 2) == 0.75);
  CHECK(ms::saturation(late, late, 2) == 1);
  CHECK(ms::saturation(early, none, 2) == 0);
  CHECK(ms::saturation(early, late, 1) == 0.25);
  CHECK_THROWS_AS(ms::saturation(early, std::vector<int>{1, 2}, 2), ms::config_error);
  CHECK_THROWS_AS(ms::saturation(early, late, 3), ms::config_error);
}

TEST_CASE("choices that others share, and what an observer is foretold of them") {
  ms::choice_overlap some;
  CHECK(some.share() == 0);
  some.add(ids({0, 3}), ids({3, 1})), some.add(ids({2, -1}), ids({2, -1}));  // one of two, one of one
  CHECK(some.shared == 2);
  CHECK(some.all == 3);

  struct V : ms::variant {};
  using B = ms::reference<double>;
  ms::sizes s = tiny_sizes;
  s.moe_every = 1;
  ms::model<V, B> m({.sizes = s}, ms::seed{3});
  const std::vector<int> text = random_tokens(33, s.vocab, 9);
  const auto foretold = [&] {
    ms::arena memory;
    ms::expert_observer watch(memory, s.vocab);
    ms::evaluate(m, std::span<const int>(text), ms::window_options{.length = 16, .sequences = 2}, watch);
    std::vector<ms::choice_overlap> of;
    for (const ms::expert_counts& c : watch.counts()) of.push_back(c.foretold);
    return of;
  };
  const auto drawn = foretold();
  REQUIRE(int(drawn.size()) == s.layers);
  CHECK(drawn[0].all == 0);  // nothing comes before the first layer
  for (std::size_t l = 1; l < drawn.size(); ++l) CHECK(drawn[l].all == 32 * 2);
  CHECK(drawn.back().shared < drawn.back().all);

  // Where nothing is added on the way from one layer to the experts of the next, all are foretold.
  for (const auto& t : m.tensors())
    if (t.name.starts_with("model.layers.1.self_attn.o_proj") ||
        (t.name.starts_with("model.layers.0.") &&
         (t.name.find("o_proj") != std::string::npos || t.name.find("down_proj") != std::string::npos)))
      std::fill_n(m.block().begin() + std::ptrdiff_t(t.offset), t.size, 0.0);
  CHECK(foretold()[1].share() == 1);
}

TEST_CASE("experts touched for a token that stands") {
  ms::decode_stats s;
  CHECK(ms::experts_touched(s) == 0);
  s.tokens = 4, s.experts_read = 10;  // of two MoE layers: plain decoding of four tokens reads 16
  CHECK(ms::experts_touched(s) == 2.5);
  CHECK(ms::touched_gain(s, tiny_sizes, 2) == Approx(1.6));
}

TEST_CASE("what a session reads and computes, call by call") {
  struct V : ms::variant {
    using router = ms::router::hash<2>;
  };
  using B = ms::reference<double>;
  ms::model<V, B> m({.sizes = tiny_sizes, .exits = ms::exits_after(2)}, ms::seed{3});
  const ms::sizes& s = m.sizes();
  const double active = double(ms::footprint(m).active_parameters), width = s.head_size();
  ms::counted_session<V, B> counted(m);
  const std::vector<int> prompt{1, 2, 3};
  const auto made = ms::generate(counted.session(), prompt, {.max_new_tokens = 4}, ms::decoder::autoregressive{},
                                 [](const ms::emitted&) {});
  const double pasts = 3 + 4 + 5 + 6;  // of the four tokens, themselves included
  CHECK(counted.done.total().weights == Approx(4 * active));
  CHECK(counted.done.total().past == Approx(s.layers * 2 * s.kv_heads * width * pasts));
  CHECK(counted.done.total().products == Approx(4 * active + s.layers * 2 * s.heads * width * pasts));
  CHECK(counted.bytes() == Approx(8 * (counted.done.total().weights + counted.done.total().past)));
  CHECK(ms::experts_touched(made.stats) == 2 * 2);
  CHECK(ms::touched_gain(made.stats, s, 2) == 1);

  // Three rows of one id visit the same experts, so a call of them reads what one row reads, and computes three times
  // that.
  auto& session = counted.session();
  session.prefill(prompt);
  counted.done = {};
  const ms::mat<double> x = session.memory().take<double>(3, s.dim), logits = session.memory().take<double>(3, s.vocab);
  const std::vector<int> same{7, 7, 7};
  session.embed(x, ids(same), 2);
  session.run(0, s.layers, x, 2);
  session.logits(logits, x, s.layers);
  CHECK(counted.done.total().weights == Approx(active));
  CHECK(counted.done.total().past == Approx(s.layers * 2 * s.kv_heads * width * 5));
  CHECK(counted.done.total().products == Approx(3 * active + s.layers * 2 * s.heads * width * (3 + 4 + 5)));

  // What it decodes is what a session of its own decodes.
  ms::session<V, B> alone(m);
  const auto plain = ms::generate(alone, prompt, {.max_new_tokens = 9}, ms::decoder::autoregressive{}, [](auto&) {});
  const auto speculated =
      ms::generate(session, prompt, {.max_new_tokens = 9},
                   ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, ms::draft_length::fixed>{},
                   [](auto&) {});
  CHECK(plain.ids() == speculated.ids());
}

TEST_CASE("the roof is the lower one") {
  const ms::machine_limits limits{.read = 100, .peak = 1000};
  CHECK(limits.roof(10, 20) == 10);
  CHECK(limits.roof(10, 200) == 5);
}

TEST_CASE("the loads of a layer: shares, their variation and entropy") {
  const ms::layer_routing l{.experts = 4, .per_token = 1, .tokens = 8, .choices = {4, 2, 2, 0}};
  CHECK(l.share(0) == 0.5);
  CHECK(l.max_violation() == Approx(1));
  CHECK(l.variation() == Approx(std::sqrt((1.0 + 0 + 0 + 1) / 4)));  // loads are 2, 1, 1, 0 times the mean
  CHECK(l.entropy() == Approx(1.5 / 2));                             // bits of ½, ¼, ¼, over those of ¼, ¼, ¼, ¼
  CHECK(l.dead() == 1);
}

TEST_CASE("overload of devices that hold consecutive experts") {
  const std::vector<long long> choices{6, 2, 1, 3};
  CHECK(ms::overload(choices, 1) == 0);
  CHECK(ms::overload(choices, 2) == Approx(2.0 * 8 / 12 - 1));
  CHECK(ms::overload(choices, 3) == Approx(3.0 * 6 / 12 - 1));  // {6}, {2}, {1, 3}
  CHECK(ms::overload(choices, 4) == Approx(4.0 * 6 / 12 - 1));
  CHECK(ms::overload(std::vector<long long>{0, 0}, 2) == 0);
  CHECK_THROWS_AS(ms::overload(choices, 5), ms::config_error);
  CHECK_THROWS_AS(ms::overload(choices, 0), ms::config_error);
}

TEST_CASE("experts that the same tokens choose") {
  ms::expert_pairs p(3, 3);
  p.add(ids({0, 1}), ids({0, 1})), p.add(ids({0, 1}), ids({0, 1}));
  p.add(ids({0, 2}), ids({0, 2})), p.add(ids({2, -1}), ids({2, -1}));
  CHECK(p.tokens() == 4);
  CHECK(p.together(0, 1) == 2);
  CHECK(p.together(1, 2) == 0);
  CHECK(p.given(0, 1) == Approx(2.0 / 3));  // expert 0 has three tokens, two of them visit 1
  CHECK(p.given(1, 0) == 1);
  CHECK(p.lift(0, 1) == Approx(2.0 * 4 / (3 * 2)));
  CHECK(p.lift(1, 2) == 0);
  CHECK(p.given(2, 2) == 1);

  ms::expert_pairs between(2, 3);  // of one layer and the next
  between.add(ids({0}), ids({2})), between.add(ids({0}), ids({2})), between.add(ids({1}), ids({0}));
  CHECK(between.given(0, 2) == 1);
  CHECK(between.lift(0, 2) == Approx(1.5));
  CHECK(between.given(1, 1) == 0);
}

TEST_CASE("what a token's id says about its expert") {
  ms::token_experts decided(2, 2, 1), blind(2, 2, 1);
  for (int i = 0; i < 4; ++i) {
    decided.add(0, ids({0})), decided.add(1, ids({1}));
    blind.add(0, ids({i % 2})), blind.add(1, ids({i % 2}));
  }
  CHECK(decided.share(0, 0) == 1);
  CHECK(decided.information() == Approx(1));
  CHECK(decided.predicted(decided) == 1);
  CHECK(decided.predicted_blindly(decided) == 0.5);
  CHECK(blind.information() == Approx(0));
  CHECK(blind.predicted(decided) == 0.5);

  // Ids 0 to 2 and experts 0 to 1: three of four choices of id 0 fall on expert 0, both of id 1 on expert 1.
  ms::token_experts some(3, 2, 1);
  for (const int e : {0, 0, 0, 1}) some.add(0, ids({e}));
  for (int i = 0; i < 2; ++i) some.add(1, ids({1}));
  const double mutual =
      3.0 / 6 * std::log(3.0 * 6 / (4 * 3)) + 1.0 / 6 * std::log(6.0 / (4 * 3)) + 2.0 / 6 * std::log(2.0 * 6 / (2 * 3));
  CHECK(some.information() == Approx(mutual / std::log(2.0)));
  CHECK(some.predicted(some) == Approx(5.0 / 6));

  ms::token_experts other(3, 2, 1);  // id 2, which `some` has not seen, is taken for the average: expert 0, by its id
  other.add(2, ids({0})), other.add(0, ids({1}));
  CHECK(other.predicted(some) == 0.5);
}

TEST_CASE("an observer counts every row of every MoE layer, and each with the layer before") {
  struct V : ms::variant {};
  using B = ms::reference<double>;
  ms::sizes s = tiny_sizes;  // MoE in every second layer
  ms::model<V, B> m({.sizes = s, .exits = ms::exits_after(2)}, ms::seed{3});
  const std::vector<int> text = random_tokens(65, s.vocab, 9);
  ms::arena memory;
  ms::expert_observer watch(memory, s.vocab);
  ms::evaluate(m, std::span<const int>(text), ms::window_options{.length = 16, .sequences = 2}, watch);
  const auto counts = watch.counts();
  REQUIRE(int(counts.size()) == s.moe_layers());
  const auto layers = watch.layers();
  for (std::size_t l = 0; l < counts.size(); ++l) {
    const ms::expert_counts& c = counts[l];
    CHECK(c.layer == layers[l].layer);
    CHECK(c.within.tokens() == 64);
    CHECK(c.before.tokens() == (l ? 64 : 0));
    long long together = 0, by_id = 0;
    for (int e = 0; e < s.experts; ++e) {
      CHECK(c.within.together(e, e) == layers[l].choices[std::size_t(e)]);
      for (int f = 0; f < s.experts; ++f) together += c.within.together(e, f);
    }
    CHECK(together == 64 * 4);  // two experts a token make four pairs
    for (const auto& half : c.ids)
      for (int t = 0; t < s.vocab; ++t) by_id += half.choices(t);
    CHECK(by_id == 64 * 2);
  }
}
