// What tokens cost, stage by stage, against numbers counted by hand from tiny_sizes:
//   4 layers of width 12, 6 heads of 4 over 3 groups; 2nd and 4th MoE, 5 experts of width 10, two a token; dense width 14
#include <doctest/doctest.h>

#include <numeric>

#include "moeskip/eval/counted_session.hpp"
#include "moeskip/eval/routing.hpp"
#include "tiny.hpp"

using namespace tests;
using ms::stage;

namespace {

using B = ms::reference<double>;
struct two_experts : ms::variant {};
struct gated : ms::variant {
  using layer_skip = ms::layer_skip::gate;
};
const auto ignore = [](const ms::emitted&) {};
const std::vector<int> prompt{1, 2, 3};

// Weights that a token multiplies.
constexpr double attention = 12 + 12 * 4 * (2 * 6 + 2 * 3);  // norm; queries, keys, values, output: 876 a layer
constexpr double router = 12 + 5 * 12;
constexpr double expert = 3 * 12 * 10;
constexpr double dense = 12 + 3 * 12 * 14;
constexpr double head = 12 + 17 * 12;
constexpr double keys_values = 12 + 12 * 2 * 3 * 4;  // with the norm before them

template <class V = two_experts> ms::model<V, B> tiny_model() {
  return ms::model<V, B>({.sizes = tiny_sizes, .exits = ms::exits_after(2)}, ms::seed{3});
}

void check(const ms::decode_work& w, double weights, double past, double products) {
  CHECK(w.weights == weights);
  CHECK(w.past == past);
  CHECK(w.products == products);
}

/// The names of stages as they begin.
struct listener : ms::no_tape {
  using ms::no_tape::no_tape;
  template <class Backend> void enter(Backend&, stage s) { heard += ms::text(ms::stage_names[std::size_t(s)], ", "); }
  std::string heard{};
};
template <class V> std::string heard(ms::model<V, B>& m) {
  ms::arena memory;
  ms::kv_cache<double> kv(m.layers(), 1, 8, m.sizes().kv_groups() * m.sizes().head_size(), 0);
  listener ear(memory);
  const ms::mat<double> x = memory.take<double>(2, m.sizes().dim);
  const std::vector<int> tokens{4, 5};
  m.embed(x, {tokens.data(), 2});
  ms::token_rows rows = ms::batch_rows(1, 2, memory);
  rows.token = {tokens.data(), 2};
  m.run_layers(0, 2, x, kv, rows, ear);
  return ear.heard;
}

}  // namespace

TEST_CASE("stages begin in the order of a layer's work") {
  auto m = tiny_model();
  CHECK(heard(m) == "attention, dense, attention, router, experts, ");

  ms::config<gated> c{.sizes = tiny_sizes};
  c.layer_skip = {.first = 0, .open = 100};  // every token runs every layer
  ms::model<gated, B> open(c, ms::seed{3});
  CHECK(heard(open) == "layer gate, attention, dense, layer gate, attention, router, experts, ");
}

TEST_CASE("a plainly decoded token, stage by stage") {
  auto m = tiny_model();
  ms::counted_session<two_experts, B> counted(m);
  const auto made =
      ms::generate(counted.session(), prompt, {.max_new_tokens = 2}, ms::decoder::autoregressive{}, ignore);
  // Two tokens, that see 3 and 4 tokens, themselves included: 24 scalars of keys and values each, 48 products.
  const double seen = 3 + 4;
  check(counted.done[stage::attention], 2 * 4 * attention, 4 * 24 * seen, 2 * 4 * attention + 4 * 48 * seen);
  check(counted.done[stage::router], 2 * 2 * router, 0, 2 * 2 * router);
  check(counted.done[stage::expert], 2 * 2 * 2 * expert, 0, 2 * 2 * 2 * expert);
  check(counted.done[stage::dense], 2 * 2 * dense, 0, 2 * 2 * dense);
  check(counted.done[stage::head], 2 * head, 0, 2 * head);
  check(counted.done[stage::missing_kv], 0, 0, 0);
  check(counted.done[stage::layer_gate], 0, 0, 0);
  check(counted.done.drafted, 0, 0, 0);
  CHECK(counted.done.total().weights == 2 * double(ms::footprint(m).active_parameters));
  CHECK(counted.bytes(counted.done[stage::head]) == 8 * 2 * head);

  // Time passes in stages that do something, and nowhere else; all of it within the generation.
  for (const stage s : {stage::attention, stage::router, stage::expert, stage::dense, stage::head})
    CHECK(counted.done[s].seconds > 0);
  CHECK(counted.done[stage::missing_kv].seconds == 0);
  CHECK(counted.done[stage::layer_gate].seconds == 0);
  CHECK(counted.done.total().seconds <= made.stats.seconds);
}

TEST_CASE("rows of one call read a stage's weights once, of experts those that they visit") {
  auto m = tiny_model();
  ms::counted_session<two_experts, B> counted(m);
  auto& s = counted.session();
  s.prefill(prompt);
  const ms::mat<double> x = s.memory().take<double>(3, 12), logits = s.memory().take<double>(3, 17);
  const std::vector<int> same{7, 7, 7};
  s.embed(x, {same.data(), 3}, 0);
  ms::arena memory;
  ms::routing_observer watch(memory);  // what they choose, by other means
  auto kv = ms::session<two_experts, B>::cache_for(m, 1);
  ms::mat<double> again = memory.take<double>(3, 12);
  std::copy(x.begin(), x.end(), again.begin());
  m.run_layers(0, 4, again, kv, ms::batch_rows(1, 3, memory), watch);
  double visited = 0;
  for (const ms::layer_routing& l : watch.layers())
    for (const long long choices : l.choices) visited += choices > 0;
  s.run(0, 4, x, 0);
  s.logits(logits, x, 4);
  check(counted.done[stage::attention], 4 * attention, 4 * 24 * 3, 3 * 4 * attention + 4 * 48 * (1 + 2 + 3));
  check(counted.done[stage::router], 2 * router, 0, 3 * 2 * router);
  check(counted.done[stage::expert], visited * expert, 0, 3 * 2 * 2 * expert);
  check(counted.done[stage::dense], 2 * dense, 0, 3 * 2 * dense);
  check(counted.done[stage::head], head, 0, 3 * head);
}

TEST_CASE("an early exit pays for keys and values of the layers that it skips") {
  auto m = tiny_model();
  ms::counted_session<two_experts, B> counted(m);
  const ms::decoder::early_exit<ms::exit_rule::fixed, ms::missing_kv::propagate> leave{.rule = {.exit_layer = 2}};
  ms::generate(counted.session(), prompt, {.max_new_tokens = 1}, leave, ignore);
  check(counted.done[stage::attention], 2 * attention, 2 * 24 * 3, 2 * attention + 2 * 48 * 3);
  check(counted.done[stage::expert], 2 * expert, 0, 2 * expert);
  check(counted.done[stage::missing_kv], 2 * keys_values, 0, 2 * keys_values);
  check(counted.done[stage::head], head, 0, head);
  CHECK(counted.done[stage::missing_kv].seconds > 0);
}

TEST_CASE("tokens that pass a layer by pay for its gate, and for their keys and values") {
  ms::config<gated> c{.sizes = tiny_sizes};
  c.layer_skip = {.first = 0, .open = -100};  // no token runs a layer that has a gate
  constexpr int gates = 3;                    // the last layer has none
  ms::model<gated, B> m(c, ms::seed{3});
  ms::counted_session<gated, B> counted(m);
  ms::generate(counted.session(), prompt, {.max_new_tokens = 1}, ms::decoder::autoregressive{}, ignore);
  check(counted.done[stage::layer_gate], gates * (24 + keys_values), 0, gates * (24 + keys_values));
  check(counted.done[stage::attention], (4 - gates) * attention, (4 - gates) * 24 * 3,
        (4 - gates) * (attention + 48 * 3));
}

TEST_CASE("what drafts cost is told apart, and changes nothing") {
  auto m = tiny_model();
  ms::counted_session<two_experts, B> counted(m);
  using fixed = ms::draft_length::fixed;
  using counted_self = ms::counted_draft<ms::draft::self>;
  const ms::speculative_decoder::compose<counted_self, ms::acceptance::exact, fixed> speculate{
      .draft = {.base = {.exit_layer = 2}, .to = &counted.done}, .length = {.num_speculations = 2}};
  const auto made = ms::generate(counted.session(), prompt, {.max_new_tokens = 12}, speculate, ignore);
  REQUIRE(made.stats.drafted > 0);
  // A proposal runs two layers, one of them MoE, and a head.
  const double one = 2 * attention + dense + router + 2 * expert + head;
  CHECK(counted.done.drafted.weights == made.stats.drafted * one);
  CHECK(counted.done.drafted.weights < counted.done.total().weights);
  CHECK(counted.done.drafted.seconds > 0);
  CHECK(counted.done.drafted.seconds <= made.stats.draft_seconds);

  ms::session<two_experts, B> alone(m);
  const ms::speculative_decoder::compose<ms::draft::self, ms::acceptance::exact, fixed> uncounted{
      .draft = {.exit_layer = 2}, .length = {.num_speculations = 2}};
  const auto same = ms::generate(alone, prompt, {.max_new_tokens = 12}, uncounted, ignore);
  CHECK(made.ids() == same.ids());
  CHECK(made.stats.drafted == same.stats.drafted);
  static_assert(ms::ChoosesExit<counted_self::on<ms::session<two_experts, B>>>);
}
