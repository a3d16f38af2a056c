// Loops of decoding on the device: the ops that they are made of beside plain loops in double, scripts, and the tokens
// and statistics of every decoder that runs there.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>

#include "models.hpp"
#include "scripts.hpp"
#include "text_cases.hpp"

using namespace tests;

namespace {

using ms::decoder::on_device;
template <class T> constexpr T infinite = std::numeric_limits<T>::infinity();

template <class Case> void agrees(const Case& c) {
  for (int order = 0; order < 3; ++order)
    for (std::uint64_t seed = 1; seed <= 2; ++seed) {
      CAPTURE(order);
      CAPTURE(seed);
      const emulated e({.order = order});
      CHECK(difference(run<ms::reference<double>>(c, seed), run<ms::emulated_cuda<float>>(c, seed)) < 1e-5);
    }
}

}  // namespace

TEST_CASE("laws of tokens agree with plain loops in double: greedy, tempered, cut") {
  for (const ms::sampling& way : ways) {
    CAPTURE(way.temperature);
    CAPTURE(way.top_k);
    agrees(law_case{way});
  }
}

TEST_CASE("a cut that all numbers together do not reach keeps them all, and drops none of the equals at its edge") {
  using B = ms::emulated_cuda<float>;
  for (const bool nans : {false, true}) {
    trial<B> t(1);
    const int V = 14;
    const auto logits = t.memory.take<float>(1, V);
    for (int i = 0; i < V; ++i) logits(0, i) = i < 10 ? 2.f - 0.1f * float(i) : 0.5f;
    if (nans) logits(0, 2) = logits(0, 5) = NAN;
    const auto law = t.memory.take<ms::token_law<float>>(1);
    const float almost = std::nextafter(1.f, 0.f);
    ms::token_laws(t.backend, law, logits, {.temperature = 1, .top_k = nans ? 13 : 0, .top_p = almost});
    ms::settle(t.backend);
    double all = 0;
    for (int i = 0; i < V; ++i)
      if (!std::isnan(logits(0, i))) all += std::exp(double(logits(0, i)) - 2);
    CHECK(law[0].total > all - 0.23);  // all, or all but one of the equals
    CHECK(law[0].total < all + 1e-4);
  }
}

TEST_CASE("tokens that are drawn, drafted and judged are those of plain loops") {
  for (const int way : {0, 1, 4}) {
    agrees(draw_case{ways[way]}), agrees(judge_case{ways[way]});
    agrees(judge_case{ways[way], drafted::alike}), agrees(judge_case{ways[way], drafted::impossible});
  }
}

TEST_CASE("exits are asked as plain loops ask them") {
  agrees(ask_case<ms::exit_rule::fixed>{{.exit_layer = 2}});
  agrees(ask_case<ms::exit_rule::max_probability>{{.threshold = 0.2f}});
  agrees(ask_case<ms::exit_rule::patience>{{.exits = 2}});
}

TEST_CASE("logits that are no finite numbers stop a text") {
  using B = ms::emulated_cuda<float>;
  for (const float bad : {NAN, -infinite<float>, infinite<float>}) {
    trial<B> t(1);
    text_of<B> its(t);
    const auto logits = t.numbers(1, 40);
    if (bad > 0) logits(0, 3) = bad;
    else std::fill(logits.begin(), logits.end(), bad);
    const auto law = t.memory.take<ms::token_law<float>>(1);
    its.text.now->going = 1;
    ms::token_laws(t.backend, law, logits, {.temperature = 1, .top_k = 3, .top_p = 0.5f});
    ms::next_token(t.backend, its.text, logits, law, ms::seed{1}, 4);
    ms::settle(t.backend);
    CHECK(its.text.now->damaged == 1);
    CHECK(its.text.now->going == 0);
    CHECK(its.text.now->count == 3);
  }
}

TEST_CASE("what is judged has the full model's distribution, whatever drafted it") {
  using B = ms::emulated_cuda<float>;
  trial<B> t(3);
  const int V = 5, rounds = sanitized ? 300 : 3000;
  const auto p = t.numbers(2, V), q = t.numbers(1, V);
  for (auto& x : p) x *= 3;
  const ms::sampling options{.temperature = 1};
  const auto p_law = t.memory.take<ms::token_law<float>>(2), q_law = t.memory.take<ms::token_law<float>>(1);
  ms::token_laws(t.backend, p_law, p, options), ms::token_laws(t.backend, q_law, q, options);
  ms::settle(t.backend);
  std::array<int, V> counts{};
  int accepted = 0;
  for (int round = 0; round < rounds; ++round) {
    const auto scope = t.memory.scope();
    text_of<B> its(t);
    its.text.now->rounds = round;
    ms::draft_token(t.backend, its.text, q, q_law, ms::seed{2}, 0);
    ms::judge_draft(t.backend, its.text, p, p_law, q, q_law, ms::seed{2}, 1, 4);
    ms::settle(t.backend);
    ++counts[std::size_t(its.text.tokens[3])], accepted += its.text.drafted[3];
  }
  double statistic = 0;
  for (int v = 0; v < V; ++v) {
    const double expected = rounds * double(p_law[0].probability(v, p(0, v)));
    statistic += (counts[std::size_t(v)] - expected) * (counts[std::size_t(v)] - expected) / expected;
  }
  CHECK(statistic < 18.47);  // 99.9 % of four degrees of freedom
  CHECK(accepted > rounds / 10);
  CHECK(accepted < rounds * 9 / 10);
}

namespace {

/// With what loops have to reckon: experts of the token before, biases, heads of low rank, a shared expert.
struct sticky_one : ms::variant {
  using router = ms::router::biased<ms::router::sticky<ms::router::top_k<2>>>;
  using shared_expert = ms::shared_expert::gated;
  using exit_head = ms::exit_head::low_rank;
  using projection = ms::projection::normed_heads;
};

template <class S, class Decoder>
ms::generated run(S& s, const Decoder& decoder, const ms::generation& options, std::uint64_t seed) {
  const std::vector<int> prompt = random_tokens(int(seed) + 3, tiny_sizes.vocab, seed);
  return ms::generate(s, prompt, options, decoder, [](const ms::emitted&) {});
}

template <class V, class W>
void same_on_device(ms::emulation how, const ms::generation& options, std::uint64_t prompts = 1) {
  const emulated e(how);
  auto m = lively_model<V, ms::emulated_cuda<W>>();
  ms::session here(m), there(m);
  const auto alike = [&](const auto& decoder) {
    for (std::uint64_t seed = 1; seed <= prompts; ++seed) {
      CAPTURE(decoder.name);
      CAPTURE(seed);
      const ms::generated expected = run(here, decoder, options, seed);
      const ms::generated got = run(there, on_device<std::decay_t<decltype(decoder)>>{decoder, 7}, options, seed);
      CHECK(got.ids() == expected.ids());
      CHECK(got.stats.layer_steps == expected.stats.layer_steps);
      CHECK(got.stats.rounds == expected.stats.rounds);
      CHECK(got.stats.experts_read == expected.stats.experts_read);
      CHECK(got.stats.drafted == expected.stats.drafted);
      CHECK(got.stats.accepted == expected.stats.accepted);
      CHECK(got.stats.accepted_at == expected.stats.accepted_at);
      CHECK(there.tokens() == here.tokens());
      for (std::size_t i = 0; i < got.tokens.size(); ++i) {
        CHECK(got.tokens[i].exit_layer == expected.tokens[i].exit_layer);
        CHECK(got.tokens[i].drafted == expected.tokens[i].drafted);
      }
    }
  };
  alike(ms::decoder::autoregressive{});
  alike(ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}});
  alike(ms::decoder::early_exit<ms::exit_rule::patience>{.rule = {.exits = 2}});
  alike(ms::decoder::early_exit<ms::exit_rule::fixed>{.rule = {.exit_layer = 2}});
  alike(fixed_length{{.exit_layer = 2}, {.num_speculations = 3}});
  alike(fixed_length{{.exit_layer = 1, .vocabulary = 9}, {.num_speculations = 1}});
}

}  // namespace

TEST_CASE("loops on the device make the tokens and statistics of the host's, greedy and sampled") {
  same_on_device<sticky_one, ms::bf16>({.order = 1}, {.max_new_tokens = 8});
  if (sanitized) return;
  same_on_device<plain, float>({.order = 0}, {.max_new_tokens = 9}, 2);
  same_on_device<plain, ms::bf16>({.order = 2, .grid_blocks = 2, .grid_threads = 128},
                                  {.max_new_tokens = 9, .sampling = {.temperature = 1.5f, .top_p = 0.9f, .seed = {4}}},
                                  2);
}

TEST_CASE("loops on the device end where the context ends, and where the receiver says") {
  auto m = lively_model<plain, ms::emulated_cuda<float>>();
  ms::session here(m), there(m);
  const fixed_length decoder{{.exit_layer = 1}, {.num_speculations = 4}};
  const std::vector<int> prompt = random_tokens(tiny_sizes.context - 9, tiny_sizes.vocab, 1);
  const auto told = [&](auto& s, const auto& d, int stop_at) {
    int seen = 0;
    return ms::generate(s, prompt, {}, d, [&](const ms::emitted&) { return ++seen != stop_at; });
  };
  for (const int stop_at : {0, 3}) {
    const auto expected = told(here, decoder, stop_at), got = told(there, on_device<fixed_length>{decoder}, stop_at);
    CHECK(got.ids() == expected.ids());
    CHECK(got.reason == expected.reason);
    CHECK(there.tokens() == here.tokens());
  }
}

TEST_CASE("rules say the same of logits and of their law") {
  using R = ms::reference<double>;
  R b;
  const auto one = [&](const auto& rule, bool expect_both) {
    int yes = 0, all = 0;
    for (std::uint64_t seed = 1; seed <= 200; ++seed, ++all) {
      const int V = random_between(2, 30, seed, 0);
      std::vector<double> logits(static_cast<std::size_t>(V));
      for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = 3 * random_number(seed, i + 1);
      ms::token_law<double> l;
      const ms::mat<const double> row(logits.data(), 1, V);
      ms::token_laws(b, ms::vec<ms::token_law<double>>(&l, 1), row, {});
      typename std::decay_t<decltype(rule)>::state here{}, there{};
      const ms::exit_moment m{l.best, float(l.highest), float(l.second), float(l.mass), float(l.weighted), V, 2, 5, 3,
                              10};
      const bool said = rule.template leaves<double>(
          {.logits = row.row(0), .exit_layer = 2, .position = 5, .step = 3, .steps = 10}, here);
      CHECK(rule.leaves(m, there) == said);
      yes += said;
    }
    if (expect_both) CHECK((yes > 10 && yes < all - 10));
  };
  one(ms::exit_rule::max_probability{0.5f}, true);
  one(ms::exit_rule::margin{0.3f}, true);
  one(ms::exit_rule::entropy{0.4f}, true);
  one(ms::exit_rule::position_decay<ms::exit_rule::margin>{.base = {0.3f}}, true);
  one(ms::exit_rule::patience{1}, false);
  one(ms::exit_rule::fixed{3}, false);
}

namespace tests {

struct unknown {
  static constexpr const char* name = "unknown";
  void operator()(ms::index_t) const {}
};

}  // namespace tests

TEST_CASE("a script: steps in order, jumps, blocks that wait for each other and each for itself") {
  for (int order = 0; order < 3; ++order) {
    const emulated e({.order = order});
    CHECK(followed(true) == followed_by_hand());
  }
}

TEST_CASE("a script takes no phase that its kernel does not know, and waits for nobody while it is written") {
  using B = ms::emulated_cuda<float>;
  B b;
  ms::script<ms::driver::emulator, some_phases> script;
  const auto open = script.write();
  CHECK_THROWS_WITH_AS((ms::detail::device_call<ms::linear_t, B>::each(1, unknown{})),
                       "a loop on the device has no unknown: it has what models of the library do for few rows "
                       "(backend/cuda/program.hpp)",
                       ms::config_error);
  CHECK_THROWS_AS(ms::settle(b), ms::config_error);
  CHECK_THROWS_AS(static_cast<void>(script.write()), ms::error);
}

TEST_CASE("attention in a script is that of calls of its own, wherever in a long context a row stands") {
  using B = ms::emulated_cuda<float>;
  for (const int C : {150, 2100, 3072}) {
    B b;
    ms::arena memory;
    const int H = 2, G = 1, d = 4;
    const ms::attention_shape s{H, G, d, 10000.f, 0.5f};
    const auto numbers = [&](auto... extents) {
      const auto v = memory.take<float>(extents...);
      for (ms::index_t i = 0; i < v.size(); ++i) v.data()[i] = float(random_number(5, std::uint64_t(i)));
      return v;
    };
    const ms::kv_layer<float> kv{numbers(1, C, G * d), numbers(1, C, G * d)};
    const auto qkv = numbers(1, (H + 2 * G) * d), out = numbers(1, H * d), expected = numbers(1, H * d);
    const auto slot = memory.take_zeroed<int>(1), position = memory.take_zeroed<int>(1);
    const ms::token_rows rows{slot, position};
    B::loop<ms::router::top_k<2>, ms::exit_rule::fixed> script;
    {
      const auto open = script.write();
      ms::append_attend(b, out, qkv, kv, rows, {}, s, memory);
    }
    for (const int at : {0, 63, 64, 149, 700, 1500, 2040, 2047, 2048, 2099, 3071}) {
      if (at >= C) continue;
      CAPTURE(C);
      CAPTURE(at);
      position[0] = at;
      script.run();
      ms::settle(b);
      CHECK(script.clear_counters());
      ms::append_attend(b, expected, qkv, kv, rows, {}, s, memory);
      ms::settle(b);
      for (int i = 0; i < H * d; ++i) CHECK(out(0, i) == expected(0, i));
    }
  }
}

TEST_CASE("from attention to the experts a script's blocks, however many, do what a call of its own does") {
  using B = ms::emulated_cuda<ms::bf16>;
  using router = ms::router::top_k<2>;
  constexpr int D = 600, I = 40, E = 8, K = 2;  // 38 blocks
  trial<B> t(7);
  const ms::expert_set alive = ms::expert_set::first(E);
  const std::vector<int> zeros(16, 0);
  for (const int N : {1, 5, 16}) {
    CAPTURE(N);
    const ms::vec<const int> of_rows(zeros.data(), N);
    const ms::routing_call<float> call{.alive = {{&alive, 1}}, .rows = {of_rows, of_rows, of_rows}};
    const auto base = t.numbers(N, D), x = t.numbers(N, I);
    const auto w = t.weights(D, I), scorers = t.weights(E, D);
    const auto gain = t.weights(D);
    struct result {
      ms::mat<float> y, h, logits;
      ms::routing<float> r;
      ms::dispatch plan;
    };
    const auto ask = [&] {
      result out{t.numbers(N, D),
                 t.numbers(N, D),
                 t.numbers(N, E),
                 {t.numbers(N, E), t.memory.take<int>(N, K), t.numbers(N, K), t.numbers(E)},
                 {}};
      out.plan = ms::norm_route(t.backend, out.h, out.logits, out.r, {out.y, base, x, w}, {gain, scorers, {}}, 1e-5f,
                                router{}, call, 0, t.memory);
      return out;
    };
    const result expected = ask();
    ms::settle(t.backend);
    for (const ms::index_t blocks : {1, 3, 50}) {
      const emulated e({.order = int(blocks) % 3, .grid_blocks = blocks});
      B::loop<router, ms::exit_rule::fixed> script;
      const result got = [&] {
        const auto open = script.write();
        return ask();
      }();
      script.run();
      ms::settle(t.backend);
      CHECK(script.clear_counters());
      const auto same = [](const auto& a, const auto& b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); };
      CHECK(same(got.y, expected.y));
      CHECK(same(got.h, expected.h));
      CHECK(same(got.logits, expected.logits));
      CHECK(same(got.r.chosen, expected.r.chosen));
      CHECK(same(got.r.gate, expected.r.gate));
      CHECK(same(got.plan.first, expected.plan.first));
      CHECK(same(got.plan.row, expected.plan.row));
    }
  }
}

TEST_CASE("blocks ask for weights while they wait: each product's once, attention's wait for the one behind it") {
  auto m = lively_model<plain, ms::emulated_cuda<float>>();
  ms::session s(m);
  s.prefill(random_tokens(3, tiny_sizes.vocab, 1));
  constexpr int tokens = 4;
  ms::emulation::here().prefetched.clear();
  run(s, on_device<ms::decoder::autoregressive>{}, {.max_new_tokens = tokens}, 1);
  const auto& asked = ms::emulation::here().prefetched;
  const auto times = [&](const void* first) { return std::count(asked.begin(), asked.end(), first); };
  for (int l = 0; l < m.layers(); ++l) {
    CAPTURE(l);
    // The output projection says that it was asked for before, so that nobody asks where attention does not.
    CHECK(times(m.weights().layers[std::size_t(l)].attention.o.data()) == tokens);
    CHECK(times(m.weights().layers[std::size_t(l)].attention.q.data()) == tokens);
  }
}

TEST_CASE("a loop on the device stops where its text does") {
  auto m = lively_model<plain, ms::emulated_cuda<float>>();
  ms::session here(m), there(m);
  const auto free = run(here, ms::decoder::autoregressive{}, {.max_new_tokens = 8}, 1).ids();
  const ms::generation options{.max_new_tokens = 8, .stop = {free[2]}};
  const auto alike = [&](const auto& decoder) {
    const auto expected = run(here, decoder, options, 1);
    const auto got = run(there, on_device<std::decay_t<decltype(decoder)>>{decoder}, options, 1);
    CHECK(got.ids() == expected.ids());
    CHECK(got.reason == ms::finish::stop_token);
    CHECK(got.stats.rounds == expected.stats.rounds);
    CHECK(got.stats.layer_steps == expected.stats.layer_steps);
    CHECK(got.stats.experts_read == expected.stats.experts_read);
  };
  alike(ms::decoder::autoregressive{});
  alike(fixed_length{{.exit_layer = 2}, {.num_speculations = 3}});
}

namespace tests {

/// Chooses one expert twice.
struct twice : ms::router::top_k<2> {
  template <class T> void choose(const ms::routed_token<T>& t) const { t.chosen[0] = t.chosen[1] = 1; }
  friend bool operator==(const twice&, const twice&) = default;
};
struct routed_twice : ms::variant {
  using router = twice;
};

}  // namespace tests

namespace {
struct gated : ms::variant {
  using layer_skip = ms::layer_skip::gate;
};
}  // namespace

TEST_CASE("what cannot run on the device is refused, and the session can go on") {
  using B = ms::emulated_cuda<float>;
  {
    auto m = lively_model<gated, B>();
    ms::session s(m);
    CHECK_THROWS_WITH_AS(run(s, on_device<ms::decoder::autoregressive>{}, {.max_new_tokens = 3}, 1),
                         "a loop on the device cannot wait for the host, and a slot of this model's variant looks at "
                         "numbers in the middle "
                         "of a layer: gates of layers, OpenMoE's experts or a router that chooses for all rows at once",
                         ms::config_error);
    CHECK(run(s, ms::decoder::autoregressive{}, {.max_new_tokens = 3}, 1).ids().size() == 3);
  }
  auto m = lively_model<plain, B>();
  ms::session s(m);
  CHECK_THROWS_WITH_AS(run(s, on_device<ms::decoder::autoregressive>{.tokens_per_call = 0}, {}, 1),
                       "tokens_per_call must be at least 1, got 0", ms::config_error);
  CHECK_THROWS_WITH_AS(run(s, on_device<fixed_length>{{{.exit_layer = 2}, {.num_speculations = 16}}}, {}, 1),
                       "num_speculations: expected at most 15 in a loop on the device, got 16", ms::config_error);
  {
    const auto budget = s.meter().limit_experts(1);
    CHECK_THROWS_WITH_AS(run(s, on_device<ms::decoder::autoregressive>{}, {}, 1),
                         "a loop on the device visits all experts that a router chooses: the session's limit is 1",
                         ms::config_error);
  }
  ms::model<routed_twice, B> bad(tiny_config<routed_twice>(), ms::seed{1});
  ms::session of_bad(bad);
  const std::vector<int> one = {1};  // nothing to prefill
  CHECK_THROWS_WITH_AS(ms::generate(of_bad, one, {.max_new_tokens = 3}, on_device<ms::decoder::autoregressive>{},
                                    [](const ms::emitted&) {}),
                       "the router chose expert 1: expected different ones of 5", ms::config_error);
  for (auto& w : m.block()) w = NAN;
  CHECK_THROWS_AS(run(s, on_device<ms::decoder::autoregressive>{}, {.max_new_tokens = 3}, 1), ms::config_error);
}
