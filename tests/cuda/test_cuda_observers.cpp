// Observers see on the emulated CUDA backend what they see on the CPU, and only those that are there make anybody wait.
#include <doctest/doctest.h>

#include "models.hpp"
#include "moeskip/eval/counted_session.hpp"
#include "moeskip/eval/depth.hpp"
#include "moeskip/eval/drops.hpp"
#include "moeskip/eval/expert_observer.hpp"

using namespace tests;

namespace {

using host = ms::cpu<float>;
using device = ms::emulated_cuda<float>;
const auto ignore = [](const ms::emitted&) {};

/// A pass over two sequences of twelve tokens.
template <class V, class B, class Observer> void watch(Observer& o) {
  auto m = lively_model<V, B>();
  constexpr int sequences = 2, length = 12;
  ms::kv_cache<float> kv(m.layers(), sequences, length, m.sizes().kv_groups() * m.sizes().head_size(),
                         ms::follows_previous<typename V::router> ? V::router::experts_per_token : 0);
  ms::arena& memory = o.memory();
  const std::vector<int> tokens = random_tokens(sequences * length, tiny_sizes.vocab, 8);
  ms::token_rows rows = ms::batch_rows(sequences, length, memory);
  rows.token = {tokens.data(), ms::index_t(tokens.size())};
  const ms::mat<float> x = memory.take<float>(rows.size(), m.sizes().dim);
  m.embed(x, rows.token);
  m.run_layers(0, m.layers(), x, kv, rows, o);
}

/// Calls check(by the CPU, by the device) with observers that were made alike and have watched.
template <class V, class Make, class Check> void both(Make&& make, Check&& check) {
  for (int order = 0; order < 3; ++order) {
    ms::emulation::here().order = order;
    CAPTURE(order);
    ms::arena here, there;
    auto expected = make(here), got = make(there);
    watch<V, host>(expected), watch<V, device>(got);
    check(expected, got);
  }
  ms::emulation::here() = {};
}

template <class V> void same_experts() {
  both<V>([](ms::arena& memory) { return ms::expert_observer(memory, tiny_sizes.vocab, true); },
          [](const auto& expected, const auto& got) {
            const auto loads = expected.layers(), seen = got.layers();
            REQUIRE(loads.size() == std::size_t(tiny_sizes.moe_layers()));
            REQUIRE(seen.size() == loads.size());
            for (std::size_t l = 0; l < loads.size(); ++l) {
              CHECK(loads[l].tokens > 0);
              CHECK(seen[l].tokens == loads[l].tokens);
              CHECK(seen[l].choices == loads[l].choices);
              CHECK(seen[l].visited == loads[l].visited);
              CHECK(seen[l].confidence() == doctest::Approx(loads[l].confidence()).epsilon(1e-4));
              CHECK(seen[l].first_share() == doctest::Approx(loads[l].first_share()).epsilon(1e-4));
              const ms::expert_counts a = expected.counts()[l], b = got.counts()[l];
              CHECK(b.choices == a.choices);
              CHECK(b.first_choices == a.first_choices);
              CHECK(b.foretold.all == a.foretold.all);
              CHECK(b.foretold.shared == a.foretold.shared);
              for (int e = 0; e < tiny_sizes.experts; ++e)
                for (int f = 0; f < tiny_sizes.experts; ++f) CHECK(b.within.together(e, f) == a.within.together(e, f));
              for (int t = 0; t < tiny_sizes.vocab; ++t) CHECK(b.ids[0].choices(t) == a.ids[0].choices(t));
            }
          });
}

void same_work(const ms::stage_work& expected, const ms::stage_work& got) {
  for (std::size_t s = 0; s < expected.of.size(); ++s) {
    CAPTURE(ms::stage_names[s]);
    CHECK(got.of[s].weights == expected.of[s].weights);
    CHECK(got.of[s].past == expected.of[s].past);
    CHECK(got.of[s].products == expected.of[s].products);
    CHECK((got.of[s].seconds > 0) == (expected.of[s].seconds > 0));
  }
  CHECK(got.drafted.weights == expected.drafted.weights);
}

}  // namespace

TEST_CASE("loads, co-activation and choices by token are the CPU's") {
  same_experts<plain>();
  same_experts<everything>();
}

TEST_CASE("what a capacity would drop is the CPU's") {
  both<plain>([](ms::arena& memory) { return ms::drop_observer(memory, 0.75, 12, 4); },
              [](const auto& expected, const auto& got) {
                REQUIRE(expected.all().ratio() > 0);
                CHECK(got.all().assigned == expected.all().assigned);
                CHECK(got.all().dropped == expected.all().dropped);
              });
}

TEST_CASE("confidence, surprise and agreement of every exit are the CPU's") {
  auto a = lively_model<everything, host>();
  auto b = lively_model<everything, device>();
  const std::vector<std::vector<int>> texts{random_tokens(14, tiny_sizes.vocab, 2),
                                            random_tokens(9, tiny_sizes.vocab, 3)};
  const ms::depth_readings expected = ms::read_depth(a, std::span<const std::vector<int>>(texts));
  const ms::depth_readings got = ms::read_depth(b, std::span<const std::vector<int>>(texts));
  REQUIRE(expected.tokens() == 13 + 8);
  CHECK(got.exits == expected.exits);
  CHECK(got.predicted == expected.predicted);
  REQUIRE(got.bits.size() == expected.bits.size());
  for (std::size_t i = 0; i < got.bits.size(); ++i) {
    CHECK(got.bits[i] == doctest::Approx(expected.bits[i]).epsilon(1e-4));
    CHECK(got.confidence[i] == doctest::Approx(expected.confidence[i]).epsilon(1e-4));
  }
  CHECK(ms::exit_histogram(got, 0.3f) == ms::exit_histogram(expected, 0.3f));
}

TEST_CASE("bytes and products of every stage and decoder are the CPU's") {
  auto a = lively_model<everything, host>();
  auto b = lively_model<everything, device>();
  ms::counted_session<everything, host> here(a);
  ms::counted_session<everything, device> there(b);
  const std::vector<int> prompt{3, 1, 4, 1, 5};
  const auto alike = [&](const auto& decoder_of) {
    const auto expected = ms::generate(here.session(), prompt, {.max_new_tokens = 8}, decoder_of(here), ignore);
    const auto got = ms::generate(there.session(), prompt, {.max_new_tokens = 8}, decoder_of(there), ignore);
    CHECK(got.ids() == expected.ids());
    CHECK(here.done.total().weights > 0);
    same_work(here.done, there.done);
    here.done = {}, there.done = {};
  };
  alike([](auto&) { return ms::decoder::autoregressive{}; });
  alike([](auto&) { return ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}}; });
  alike([](auto& counted) {
    return ms::speculative_decoder::compose<ms::counted_draft<ms::draft::self>, ms::acceptance::exact,
                                            ms::draft_length::fixed>{
        .draft = {.base = {.exit_layer = 2}, .to = &counted.done}, .length = {.num_speculations = 3}};
  });
}

TEST_CASE("an observer of times waits for the device where a stage begins; without one nobody does") {
  auto m = lively_model<plain, device>();
  const std::vector<int> prompt{3};
  const auto waits = [&](auto& session) {
    const long long before = ms::emulation::here().waits;
    ms::generate(session, prompt, {.max_new_tokens = 1}, ms::decoder::autoregressive{}, ignore);
    return ms::emulation::here().waits - before;
  };
  ms::session<plain, device> alone(m);
  ms::counted_session<plain, device> counted(m);
  const long long needed = waits(alone);
  // Each layer: its begin, its end, and three stages of a MoE layer or two of a dense one; the head: begin and end.
  // Besides, layers run one by one, and each run ends with a wait.
  const int layers = tiny_sizes.layers, moe = tiny_sizes.moe_layers();
  CHECK(waits(counted.session()) == needed + 2 * layers + 3 * moe + 2 * (layers - moe) + 2 + (layers - 1));
}
