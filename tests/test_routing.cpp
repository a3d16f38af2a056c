// Routers beyond top-k: what they choose, by hand-made cases; that decoding and verifying route as training does; and
// what the routing statistics count.
#include <doctest/doctest.h>

#include <cmath>
#include <filesystem>

#include "moeskip/formats/safetensors.hpp"
#include "moeskip/model/metadata.hpp"
#include "tiny.hpp"

using namespace tests;

namespace {

using ms::router::biased;
using ms::router::expert_choice;
using ms::router::grouped_top_k;
using ms::router::noisy_top_k;
using ms::router::segment;
using ms::router::segment_group;
using ms::router::sigmoid_top_k;
using ms::router::smooth;
using ms::router::sticky;
using ms::router::top_k;

/// Routes rows of logits, each a token of its own sequence unless `rows` says more.
template <class R> struct routed {
  static constexpr int K = R::experts_per_token;
  ms::reference<double> backend;
  ms::arena memory;
  ms::routing<double> r;
  std::vector<double> logits;
  ms::expert_set alive;
  ms::routing_call<double> call;

  routed(const R& router, std::vector<double> l, int experts, ms::routing_call<double> c = {})
      : logits(std::move(l)), alive(ms::expert_set::first(experts)), call(c) {
    const ms::index_t cols = experts * ms::logits_per_expert<R>, N = ms::index_t(logits.size()) / cols;
    r = {memory.take<double>(N, experts), memory.take<int>(N, K), memory.take<double>(N, K),
         memory.take<double>(experts)};
    if (!call.alive.sets.size()) call.alive = {{&alive, 1}};
    ms::route(backend, r, ms::mat<const double>(logits.data(), N, cols), router, call, memory);
  }
  std::vector<int> chosen() const { return {r.chosen.begin(), r.chosen.end()}; }
  std::vector<double> gates() const { return {r.gate.begin(), r.gate.end()}; }
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// N consecutive tokens of one sequence.
struct one_sequence {
  std::vector<int> slot, position, token;
  explicit one_sequence(int n, int first = 0) : slot(std::size_t(n)), position(std::size_t(n)), token(std::size_t(n)) {
    for (int i = 0; i < n; ++i) position[std::size_t(i)] = first + i;
  }
  ms::token_rows rows() const {
    const auto n = ms::index_t(slot.size());
    return {{slot.data(), n}, {position.data(), n}, {token.data(), n}};
  }
};

}  // namespace

TEST_CASE("sigmoid_top_k: gates, scale, and a bias that only the choice sees") {
  const std::vector<double> logits{0, 1, 2, 3};
  const routed<sigmoid_top_k<2>> plain({}, logits, 4);
  CHECK(plain.chosen() == std::vector<int>{3, 2});
  const double both = sigmoid(3) + sigmoid(2);
  CHECK(plain.gates()[0] == doctest::Approx(sigmoid(3) / both));

  const routed<sigmoid_top_k<2>> scaled({.renormalise = false, .scale = 2.5f}, logits, 4);
  CHECK(scaled.gates()[1] == doctest::Approx(2.5 * sigmoid(2)));

  const std::vector<double> bias{1, 0, 0, -1};
  ms::routing_call<double> call;
  call.bias = {bias.data(), 4};
  const routed<sigmoid_top_k<2>> moved({}, logits, 4, call);
  CHECK(moved.chosen() == std::vector<int>{0, 2});
  CHECK(moved.gates()[0] == doctest::Approx(sigmoid(0) / (sigmoid(0) + sigmoid(2))));
}

TEST_CASE("sigmoid_top_k: only the best groups are open, judged by their two best") {
  // Group 0 holds the single best expert, group 1 the best pair.
  const std::vector<double> logits{4, -4, -4, 2, 2, -4};
  CHECK(routed<sigmoid_top_k<2>>({.groups = 2, .best_groups = 1}, logits, 6).chosen() == std::vector<int>{3, 4});
  CHECK(routed<sigmoid_top_k<2>>({.groups = 2, .best_groups = 2}, logits, 6).chosen() == std::vector<int>{0, 3});
  // Dropout that leaves the best group one expert opens the others.
  ms::expert_set alive = ms::expert_set::first(6);
  alive.erase(1).erase(2).erase(4).erase(5);  // 0 | 3
  ms::routing_call<double> call;
  call.alive = {{&alive, 1}};
  CHECK(routed<sigmoid_top_k<2>>({.groups = 2, .best_groups = 1}, logits, 6, call).chosen() == std::vector<int>{0, 3});
}

TEST_CASE("grouped_top_k: chooses and weighs as transformers' DeepSeek-V2 does") {
  const ms::safetensors_file golden(std::filesystem::path(MOESKIP_TEST_DATA) / "deepseek_v2_router.safetensors");
  const auto read = [&](const char* name) {
    std::vector<double> values(64 * 12);
    golden.read<double>(name, {64, 12}, values);
    return values;
  };
  const auto worst = [&](const grouped_top_k<3>& router,
                         const std::vector<double>& want) {  // gates, 0 where not chosen
    const routed<grouped_top_k<3>> got(router, read("logits"), 12);
    std::vector<double> gates(64 * 12);
    for (std::size_t i = 0; i < 64 * 3; ++i)
      gates[i / 3 * 12 + std::size_t(got.r.chosen.data()[i])] += got.r.gate.data()[i];
    double apart = 0;
    for (std::size_t i = 0; i < gates.size(); ++i) apart = std::max(apart, std::abs(gates[i] - want[i]));
    return apart;
  };
  CHECK(worst({.scale = 2.5f}, read("greedy")) < 1e-6);
  CHECK(worst({.groups = 4, .best_groups = 2, .scale = 2.5f}, read("grouped")) < 1e-6);
  CHECK(worst({.scale = 2.5f}, read("grouped")) > 0.1);
}

TEST_CASE("groups that do not fit the experts are refused") {
  struct grouped : ms::variant {
    using router = biased<sigmoid_top_k<2>>;
  };
  ms::config<grouped> c{.sizes = tiny_sizes};
  c.sizes.experts = 6;
  CHECK(ms::problem(c).empty());
  c.router.base.groups = 4;
  CHECK(ms::problem(c) == "sizes.experts must be a multiple of router.groups");
  c.router.base.groups = 6;
  CHECK(ms::problem(c) == "router.best_groups must hold at least experts_per_token experts");
  c.router.base.best_groups = 7;
  CHECK(ms::problem(c) == "router.best_groups must be from 1 to router.groups");
  c.router = {.bias_rate = -1};
  CHECK(ms::problem(c) == "router.bias_rate must be 0 or more, and finite");
  c.router = {.settles_from = 1.5f};
  CHECK(ms::problem(c) == "router.settles_from must be in [0, 1]");
}

TEST_CASE("noisy_top_k: noise while training, redrawn the same, and none at inference") {
  const std::vector<double> logits{0.3, 0.2, 0.1, 0, 1, 1, 1, 1};  // four experts, then their noise sizes
  ms::routing_call<double> call;
  const routed<noisy_top_k<2>> still({}, logits, 4, call);
  CHECK(still.chosen() == std::vector<int>{0, 1});
  call.training = true;
  int others = 0;
  for (std::uint64_t step = 0; step < 200; ++step) {
    call.step = step;
    const routed<noisy_top_k<2>> once({}, logits, 4, call), again({}, logits, 4, call);
    CHECK(once.chosen() == again.chosen());
    others += once.chosen() != still.chosen();
  }
  CHECK(others > 100);  // of 12 ordered pairs one is right
  CHECK(others < 200);
}

TEST_CASE("hash: by vocabulary id and layer alone, evenly, distinct") {
  constexpr int N = 4000, E = 8;
  one_sequence s(N);
  for (int n = 0; n < N; ++n) s.token[std::size_t(n)] = n / 2;
  ms::routing_call<double> call;
  call.rows = s.rows();
  // Without logits the number of rows comes from elsewhere: route by hand.
  ms::arena memory;
  ms::reference<double> backend;
  const ms::expert_set alive = ms::expert_set::first(E);
  call.alive = {{&alive, 1}};
  const ms::routing<double> out{memory.take<double>(N, E), memory.take<int>(N, 2), memory.take<double>(N, 2),
                                memory.take<double>(E)};
  ms::route(backend, out, ms::mat<const double>(nullptr, N, 0), ms::router::hash<2>{}, call, memory);
  for (int n = 0; n < N; n += 2) {
    CHECK(out.chosen(n, 0) == out.chosen(n + 1, 0));
    CHECK(out.chosen(n, 0) != out.chosen(n, 1));
  }
  for (const double load : out.load) CHECK(std::abs(load - 1.0 / E) < 0.02);
  call.rows.token = {};
  CHECK_THROWS_WITH_AS(
      ms::route(backend, out, ms::mat<const double>(nullptr, N, 0), ms::router::hash<2>{}, call, memory),
      "router hash routes by vocabulary id: this call has none", ms::config_error);
}

TEST_CASE("expert_choice: every expert takes its best tokens, the same number each") {
  // Token 0 is everybody's favourite; of three tokens each of two experts takes ⌈3 · 1 / 2⌉ = 2.
  const std::vector<double> logits{0, 0, 2, 0, -1, 0};
  const routed<expert_choice<2>> r({.per_token = 1}, logits, 2);
  // p(expert 0) = 0.5, 0.88, 0.27: tokens 1, 0. p(expert 1): tokens 2, 0.
  CHECK(r.chosen() == std::vector<int>{0, 1, 0, -1, 1, -1});
  CHECK(r.gates()[0] == doctest::Approx(0.5));
  CHECK(r.gates()[3] == 0);
  CHECK(r.r.load[0] == doctest::Approx(0.5));
  // With room for one expert a token keeps the better one; among equals the lower id.
  CHECK(routed<expert_choice<1>>({.per_token = 1}, logits, 2).chosen() == std::vector<int>{0, 0, 1});
}

TEST_CASE("segments share the choice of their first token, and weigh it by themselves") {
  const one_sequence s(5);
  ms::routing_call<double> call;
  call.rows = s.rows();
  const std::vector<double> logits{3, 2, 1, 0,   //
                                   0, 1, 2, 3,   // follows token 0
                                   0, 1, 2, 3,   // leads
                                   3, 2, 1, 0,   // follows token 2
                                   1, 3, 2, 0};  // leads
  const routed<segment<top_k<2>, 2>> r({}, logits, 4, call);
  CHECK(r.chosen() == std::vector<int>{0, 1, 0, 1, 3, 2, 3, 2, 1, 2});
  CHECK(r.gates()[2] == doctest::Approx(sigmoid(0 - 1)));
  const routed<segment<top_k<2>, 4>> longer({}, logits, 4, call);
  CHECK(longer.chosen() == std::vector<int>{0, 1, 0, 1, 0, 1, 0, 1, 1, 2});
  const routed<segment<top_k<2>, 2, 1>> one_free({}, logits, 4, call);
  CHECK(one_free.chosen() == std::vector<int>{0, 1, 0, 3, 3, 2, 3, 0, 1, 2});
  call.layer = 2;
  const routed<segment<top_k<2>, 2>> below({.from_layer = 3}, logits, 4, call);
  CHECK(below.chosen() == std::vector<int>{0, 1, 3, 2, 3, 2, 0, 1, 1, 2});
  call.progress = 0.5;
  CHECK(routed<segment<top_k<2>, 2>>({.from_progress = 0.5f}, logits, 4, call).chosen() == r.chosen());
  CHECK(routed<segment<top_k<2>, 2>>({.from_progress = 0.75f}, logits, 4, call).chosen() == below.chosen());
  for (int tenth = 0; tenth <= 10; ++tenth) {  // 0.8f is more than 0.8
    call.progress = tenth / 10.0;
    const routed<segment<top_k<2>, 2>> late({.from_progress = 0.8f}, logits, 4, call);
    CHECK(late.chosen() == (tenth < 8 ? below : r).chosen());
  }
}

TEST_CASE("segments of groups: the first token chooses a group, each chooses in it") {
  const one_sequence s(4);
  ms::routing_call<double> call;
  call.rows = s.rows();
  const std::vector<double> logits{0, 1, 5, 2, 4, 0,   // leads: expert 2 is best, so experts 0 to 2, of these 2 and 1
                                   9, 1, 0, 9, 9, 9,   // follows: 0 and 1, whatever the others say
                                   0, 0, 0, 1, 2, 3,   // leads: 5 is best, so 3 to 5
                                   9, 9, 9, 2, 1, 0};  // follows
  const segment_group<top_k<2>, 2, 3> router{};
  CHECK(routed<segment_group<top_k<2>, 2, 3>>(router, logits, 6, call).chosen() ==
        std::vector<int>{2, 1, 0, 1, 5, 4, 3, 4});
  call.layer = 1;
  CHECK(routed<segment_group<top_k<2>, 2, 3>>({.from_layer = 2}, logits, 6, call).chosen() ==
        routed<top_k<2>>({}, logits, 6, call).chosen());
  // Where dropout leaves a group too few, its tokens choose freely.
  ms::expert_set alive = ms::expert_set::first(6);
  alive.erase(1).erase(2);
  int chosen[2];
  double probability[6], gate[2];
  const int before[] = {0, 3};
  ms::routed_token<double> token{logits.data() + 6, probability, chosen, gate, 6, &alive};
  token.previous = before, token.position = 1;
  router.choose(token);
  CHECK(chosen[0] == 0);
  CHECK(chosen[1] == 3);

  struct grouped : ms::variant {
    using router = segment_group<top_k<2>, 2, 3>;
  };
  CHECK(ms::problem(ms::config<grouped>{.sizes = tiny_sizes}) ==
        "sizes.experts must be a multiple of the router's group size");
  CHECK(ms::variant_name<grouped>().find("router=segment_group<2, groups of 3, top_k<2>>") == 0);
}

TEST_CASE("sticky: the experts of the token before have a bonus") {
  const one_sequence s(3);
  ms::routing_call<double> call;
  call.rows = s.rows();
  const std::vector<double> logits{2, 1,   0,   0,  //
                                   1, 1.4, 1.9, 0,  // expert 2 is better than 0 by 0.9
                                   0, 0,   3,   1};
  CHECK(routed<sticky<top_k<2>>>({.bonus = 1}, logits, 4, call).chosen() == std::vector<int>{0, 1, 1, 0, 2, 0});
  CHECK(routed<sticky<top_k<2>>>({.bonus = 0}, logits, 4, call).chosen() == std::vector<int>{0, 1, 2, 1, 2, 3});
}

TEST_CASE("gates are numbers however unlikely the chosen experts are") {
  const one_sequence s(2);
  ms::routing_call<double> call;
  call.rows = s.rows();
  // The second token takes over experts whose probabilities are 0 in double.
  const std::vector<double> logits{9, 8, 0, 0, -2000, -2001, 0, 0};
  const routed<segment<top_k<2>, 2>> r({}, logits, 4, call);
  CHECK(r.chosen() == std::vector<int>{0, 1, 0, 1});
  CHECK(r.gates()[2] == doctest::Approx(sigmoid(1)));
  const routed<segment<noisy_top_k<2>, 2>> noisy({}, {9, 8, 0, 0, 0, 0, 0, 0, -2000, -2001, 0, 0, 0, 0, 0, 0}, 4, call);
  CHECK(noisy.gates()[2] == doctest::Approx(sigmoid(1)));
  const routed<segment<sigmoid_top_k<2>, 2>> none({}, logits, 4, call);
  CHECK(none.gates()[2] == 0);
  CHECK(none.gates()[3] == 0);
}

TEST_CASE("a segment's own expert may be the only one left") {
  const one_sequence s(2);
  for (int n = 0; n < 2; ++n) CHECK(s.token[std::size_t(n)] == 0);
  ms::routing_call<double> call;
  call.rows = s.rows();
  const std::vector<double> logits{3, 2, 1, 1, 2, 3};
  const routed<segment<top_k<3>, 2, 1>> all({}, logits, 3, call);  // three experts, three a token
  CHECK(all.chosen() == std::vector<int>{0, 1, 2, 0, 1, 2});
  ms::arena memory;
  ms::reference<double> backend;
  const ms::expert_set alive = ms::expert_set::first(3);
  call.alive = {{&alive, 1}};
  const ms::routing<double> out{memory.take<double>(2, 3), memory.take<int>(2, 3), memory.take<double>(2, 3),
                                memory.take<double>(3)};
  const segment<ms::router::hash<3>, 2, 1> hashed;
  ms::route(backend, out, ms::mat<const double>(nullptr, 2, 0), hashed, call, memory);
  for (const double p : out.probability) CHECK(p == doctest::Approx(1 / 3.));
}

TEST_CASE("a selection bias evens out the load") {
  struct even : ms::variant {
    using router = biased<top_k<2>>;
  };
  const auto worst = [](float rate) {
    ms::config<even> c{.sizes = tiny_sizes};
    c.router = {.base = {.balance_loss = 0, .z_loss = 0}, .bias_rate = rate};
    ms::model<even, ms::cpu<float>> m(c, ms::seed{3});
    const std::vector<int> text = random_tokens(4000, c.sizes.vocab, 5);
    ms::random_windows data(text, 8, 20, ms::seed{1});
    ms::trainer<even, ms::cpu<float>> t(m, {.steps = 150});
    while (t.next_step() < 150) t.step(data);
    ms::arena memory;
    ms::routing_observer seen(memory);
    ms::evaluate(m, text, ms::window_options{.length = 20}, seen);
    double most = 0;
    for (const ms::layer_routing& l : seen.layers()) most = std::max(most, l.max_violation());
    for (const ms::tensor_info& tensor : m.tensors())
      if (tensor.kind == ms::tensor_kind::selection_bias)
        for (ms::index_t i = 0; i < tensor.size; ++i) {
          const double steps = double(m.block()[tensor.offset + i]) / rate;
          if (rate > 0) CHECK(std::abs(steps - std::round(steps)) < 1e-2);  // whole steps, no decay
          else CHECK(m.block()[tensor.offset + i] == 0);
        }
    return most;
  };
  const double without = worst(0), with = worst(0.02f);
  CHECK(with < 0.7 * without);
}

namespace {

template <class R, class S = ms::shared_expert::none> struct with : ms::variant {
  using router = R;
  using shared_expert = S;
};

/// Greedy speculation against plain decoding, with a router that remembers, and random weights.
template <class V, class B> void check_speculation(const ms::config<V>& base) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    ms::config<V> c = base;
    c.exits = ms::exits_after(1, 2);
    ms::model<V, B> m(c, ms::seed{seed});
    const std::vector<int> prompt = random_tokens(3 + int(seed % 5), c.sizes.vocab, seed);
    const auto none = [](const ms::emitted&) {};
    const ms::generation options{.max_new_tokens = 20};
    const auto plain = ms::generate(m, prompt, options, ms::decoder::autoregressive{}, none);
    using decoder = fixed_length;
    for (const int exit : {1, 2})
      for (const int d : {1, 3, 5}) {
        const decoder speculative{.draft = {.exit_layer = exit}, .length = {.num_speculations = d}};
        CHECK(ms::generate(m, prompt, options, speculative, none).ids() == plain.ids());
      }
    // Early exit leaves tokens without a choice in the upper layers; the next ones choose anew.
    const ms::decoder::early_exit<> early{.rule = {.threshold = 0.2f}};
    CHECK(ms::generate(m, prompt, options, early, none).ids().size() == plain.ids().size());
  }
}

}  // namespace

TEST_CASE_TEMPLATE("routers with memory: speculation gives the tokens of plain decoding", B, ms::cpu<float>,
                   ms::cpu<ms::bf16>, ms::reference<double>) {
  check_speculation<with<segment<top_k<2>, 4>>, B>({.sizes = tiny_sizes});
  check_speculation<with<segment<top_k<2>, 3, 1>>, B>({.sizes = tiny_sizes, .router = {.from_layer = 1}});
  ms::sizes six = tiny_sizes;
  six.experts = 6;
  check_speculation<with<segment_group<top_k<2>, 4, 3>>, B>({.sizes = six});
  check_speculation<with<sticky<biased<sigmoid_top_k<2>>>, ms::shared_expert::gated>, B>({.sizes = tiny_sizes});
  check_speculation<with<ms::router::hash<2>, ms::shared_expert::always>, B>({.sizes = tiny_sizes});
}

TEST_CASE("routers with memory: one token at a time routes as the whole text at once") {
  using V = with<segment<sticky<top_k<2>>, 4>>;
  ms::config<V> c{.sizes = tiny_sizes};
  ms::model<V, ms::cpu<float>> m(c, ms::seed{4});
  const std::vector<int> text = random_tokens(32, c.sizes.vocab, 9);
  // Whole: one prefill of the text; stepwise: a session that pushes token by token.
  ms::session<V, ms::cpu<float>> whole(m), stepwise(m);
  whole.prefill(text);
  stepwise.prefill(std::span<const int>(text.data(), 1));
  ms::arena memory;
  for (int at = 0; at + 1 < int(text.size()); ++at) {
    const ms::mat<float> x = memory.take<float>(1, c.sizes.dim);
    stepwise.embed(x, text[std::size_t(at)], at);
    stepwise.run(0, c.sizes.layers, x, at);
    stepwise.push(text[std::size_t(at) + 1]);
  }
  for (int l = 0; l < c.sizes.layers; ++l)
    for (int at = 0; at + 1 < int(text.size()); ++at)
      for (int k = 0; k < 2; ++k)
        CHECK(whole.keys_values(l).experts.plane(0)(at, k) == stepwise.keys_values(l).experts.plane(0)(at, k));
}

using segment_of_four = segment<top_k<2>, 4, 1>;

using segment_of_group = segment_group<top_k<2>, 4, 3>;

TEST_CASE_TEMPLATE("routers with memory: long prompts, sessions used again, truncation", R, segment_of_four,
                   segment_of_group, sticky<top_k<2>>) {
  using V = with<R>;
  ms::config<V> c{.sizes = tiny_sizes, .exits = ms::exits_after(2)};
  c.sizes.experts = 6;
  c.sizes.context = 400;
  ms::model<V, ms::cpu<float>> m(c, ms::seed{6});
  const std::vector<int> prompt = random_tokens(300, c.sizes.vocab, 2), other = random_tokens(170, c.sizes.vocab, 3);
  const auto none = [](const ms::emitted&) {};
  const ms::generation options{.max_new_tokens = 60};
  ms::session<V, ms::cpu<float>> fresh(m), used(m);
  const auto want = ms::generate(fresh, prompt, options, ms::decoder::autoregressive{}, none);
  int early = 0;
  ms::generate(used, other, {.max_new_tokens = 200}, ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}},
               [&](const ms::emitted& e) { early += e.exit_layer < 4; });
  CHECK(early >= 10);  // tokens that left the upper layers without a choice
  CHECK(early < 200);
  const fixed_length speculative{.length = {.num_speculations = 5}};
  CHECK(ms::generate(used, prompt, options, speculative, none).ids() == want.ids());
  CHECK(ms::generate(used, prompt, options, ms::decoder::autoregressive{}, none).ids() == want.ids());
  // Back to the 310th token, and on: by hand, token by token.
  used.truncate(310);
  const ms::mat<float> x = used.memory().template take<float>(1, c.sizes.dim);
  const ms::mat<float> logits = used.memory().template take<float>(1, c.sizes.vocab);
  for (std::size_t i = 10; i < want.ids().size(); ++i) {
    used.embed(x);
    used.logits(logits, used.run(0, 4, x, used.position()), 4);
    const int token = ms::argmax(ms::vec<const float>(logits.row(0)));
    CHECK(token == want.ids()[i]);
    used.push(token);
  }
}

namespace {
/// A user's router that changes one step, and leaves all else to what it is made from.
template <class R> struct last_first {
  static constexpr std::string_view name = "last_first";
  using base_type = R;
  static constexpr int experts_per_token = R::experts_per_token;
  R base{};
  template <class T> void choose(const ms::routed_token<T>& t) const {
    ms::router::choose<T>(base, t);
    std::reverse(t.chosen, t.chosen + experts_per_token);
  }
  friend constexpr bool operator==(const last_first&, const last_first&) = default;
};
static_assert(ms::Router<last_first<biased<segment<top_k<2>, 4>>>>);
static_assert(ms::segment_length<last_first<biased<segment<top_k<2>, 4>>>> == 4);
static_assert(ms::follows_previous<last_first<segment<top_k<2>, 4>>>);
static_assert(ms::has_selection_bias<last_first<biased<top_k<2>>>>);
static_assert(ms::logits_per_expert<last_first<ms::router::noisy_top_k<2>>> == 2);
static_assert(ms::ChoosesRows<last_first<expert_choice<2>>> && !ms::ChoosesRows<last_first<top_k<2>>>);
}  // namespace

TEST_CASE("a router made from another one has the steps that it lacks from that one") {
  const std::vector<double> logits{3, 2, 1, 0, 0, 1, 2, 3};
  const routed<top_k<2>> plain({}, logits, 4);
  const routed<last_first<top_k<2>>> reversed({}, logits, 4);
  CHECK(reversed.chosen() == std::vector<int>{1, 0, 2, 3});
  CHECK(reversed.gates()[0] == plain.gates()[1]);
  CHECK(ms::router::full_name<last_first<top_k<2>>>() == "last_first<top_k<2>>");
  CHECK(ms::router::active_experts(last_first<expert_choice<4>>{.base = {.per_token = 1.5f}}) == 1.5);
}

TEST_CASE("checkpoints tell nested routers apart") {
  CHECK(ms::variant_name<with<segment<biased<sigmoid_top_k<2>>, 4, 1>>>().find(
            "router=segment<4, 1 free, biased<sigmoid_top_k<2>>>") == 0);
  CHECK(ms::policy_names<with<smooth<top_k<2>>>>().at("router") == "smooth<top_k<2>>");
  using nested = with<segment<sticky<top_k<2>>, 4>>;
  const ms::config<nested> c{.sizes = tiny_sizes,
                             .router = {.base = {.bonus = 0.25f, .from_layer = 1}, .from_progress = 0.5f}};
  const ms::string_map map = ms::to_metadata(c);
  CHECK(map.at("router.base.bonus") == "0.25");
  CHECK(map.at("router.base.from_layer") == "1");
  CHECK(map.at("router.from_progress") == "0.5");
  CHECK(ms::from_metadata<nested>(map, "a file") == c);

  ms::config<nested> at_once = c;  // of files from before there was an onset in time
  at_once.router.from_progress = 0;
  ms::string_map older = map;
  older.erase("router.from_progress"), older.erase("router.base.from_progress");
  CHECK(ms::from_metadata<nested>(older, "a file") == at_once);
}

TEST_CASE("a selection bias of a file from before it could settle does not") {
  using sigmoid = with<biased<sigmoid_top_k<2>>>;
  const ms::config<sigmoid> c{.sizes = tiny_sizes};
  ms::string_map older = ms::to_metadata(c);
  CHECK(older.erase("router.settles_from") == 1);
  CHECK(ms::from_metadata<sigmoid>(older, "a file").router.settles_from == 1);
}

TEST_CASE("routing statistics: a hand-made routing") {
  // Eight tokens of one sequence, two experts each of four; expert 3 is never visited.
  const std::vector<int> chosen{0, 1, 0, 1, 0, 2, 0, 2, 0, 1, 0, 1, 0, 1, 0, 1};
  const one_sequence s(8);
  ms::arena memory;
  ms::routing_observer watch(memory);
  ms::mat<double> p = memory.take_zeroed<double>(8, 4);
  std::vector<int> copy = chosen;
  watch.routed(0, ms::routing<double>{p, {copy.data(), 8, 2}, {}, {}}, s.rows());
  const ms::layer_routing l = watch.layers().at(0);
  CHECK(l.tokens == 8);
  CHECK(l.share(0) == 0.5);
  CHECK(l.max_violation() == doctest::Approx(1.0));
  CHECK(l.dead() == 1);
  const double entropy = 0.5 * std::log(2) + 6. / 16 * std::log(16. / 6) + 2. / 16 * std::log(8);
  CHECK(l.entropy() == doctest::Approx(entropy / std::log(4.)));
  // Runs of two: 2 2 | 3 | 2 | 3 | 2 2 2 distinct, aligned: 2, 2, 2, 2.
  CHECK(l.distinct(0) == doctest::Approx((2 + 3 + 2 + 3 + 2 + 2 + 2) / 7.0));
  CHECK(l.distinct_aligned(0) == 2);
  CHECK(l.distinct(2) == 3);
  // f = 1, 6/8, 2/8, 0
  const double independent = 1 + (1 - 1. / 16) + (1 - 9. / 16);
  CHECK(l.independent(0) == doctest::Approx(independent));
  CHECK(l.growth_aligned(0) == 0);
}

TEST_CASE("an observer takes experts away from an evaluation") {
  ms::model<ms::variant, ms::cpu<float>> m({.sizes = tiny_sizes}, ms::seed{2});
  const std::vector<int> text = random_tokens(200, tiny_sizes.vocab, 1);
  ms::arena memory;
  ms::expert_set few = ms::expert_set::first(tiny_sizes.experts);
  few.erase(1);
  const int last = tiny_sizes.layers - 1;  // MoE, as is layer 1
  ms::routing_observer watch(memory, std::vector<ms::expert_set>(std::size_t(last), few));
  const auto with_few = ms::evaluate(m, text, ms::window_options{.length = 20}, watch);
  CHECK(with_few.back().bits_per_token != ms::evaluate(m, text, 20).back().bits_per_token);
  REQUIRE(watch.layers().size() == 2);
  CHECK(watch.layers()[0].share(1) == 0);
  CHECK(watch.layers()[1].share(1) > 0);  // beyond the list
  ms::routing_observer too_few(memory, std::vector<ms::expert_set>(4, ms::expert_set::first(1)));
  CHECK_THROWS_WITH_AS(ms::evaluate(m, text, ms::window_options{.length = 20}, too_few),
                       doctest::Contains("fewer living experts than a token visits: expected at least 2, got 1"),
                       ms::config_error);
}
