// Expert dropout: who survives, for which rows, how often, and what training does with it.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include "moeskip/model/metadata.hpp"
#include "tiny.hpp"

using namespace tests;

namespace {

namespace depth = ms::depth;
namespace over_time = ms::over_time;
namespace experts = ms::expert_dropout;
using ms::mask_scope;

constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();

template <class P> struct dropping : ms::variant { using expert_dropout = P; };

ms::mask_key key_at(std::uint64_t step, int layer = 1, std::uint64_t token = 0) {
  return {.from = ms::seed{3}, .step = step, .layer = layer, .layers = 4, .token = token};
}

/// Rows of `sequences` slots of `length` positions each.
struct batch_rows {
  std::vector<int> slot, position;
  batch_rows(int sequences, int length) {
    for (int n = 0; n < sequences * length; ++n) slot.push_back(n / length), position.push_back(n % length);
  }
  ms::token_rows view() const {
    const auto count = ms::index_t(slot.size());
    return {{slot.data(), count}, {position.data(), count}};
  }
};

template <class P> void check_round_trip(const P& policy, const ms::string_map& expected) {
  const ms::config<dropping<P>> c{.sizes = tiny_sizes, .expert_dropout = policy};
  const ms::string_map map = ms::to_metadata(c);
  for (const auto& field : expected) {
    CAPTURE(field.first);
    REQUIRE(map.contains(field.first));
    CHECK(map.at(field.first) == field.second);
  }
  CHECK(ms::from_metadata<dropping<P>>(map, "memory") == c);
}

template <class P> void refused(const P& policy, std::string_view message) {
  CHECK(ms::problem(ms::config<dropping<P>>{.sizes = tiny_sizes, .expert_dropout = policy}) == message);
}

}  // namespace

TEST_CASE("expert dropout: how many survive, and that k always do") {
  for (const float p : {0.f, 0.1f, 0.25f, 0.5f, 0.9f, 0.99f}) {
    constexpr int E = 12, K = 3, draws = 3000;
    int left = 0, of_four = 0;
    for (std::uint64_t step = 0; step < draws; ++step) {
      const ms::expert_set alive = experts::bernoulli{.p = p}.survivors(key_at(step), E, K);
      CHECK(alive.size() >= K);
      left += experts::bernoulli{.p = p}.survivors(key_at(step), E, 0).size();
      const ms::expert_set clusters = experts::cluster{.p = p, .size = 5}.survivors(key_at(step), E, 6);
      CHECK(clusters.size() >= 6);
      of_four += experts::cluster{.p = p, .size = 3}.survivors(key_at(step), E, 0).size();
    }
    const double share = 1 - double(p), deviation = std::sqrt(share * double(p) / (draws * 4));
    CHECK(std::abs(left / double(E * draws) - share) <= 4 * deviation);  // of 4 clusters, more than of 12 experts
    CHECK(std::abs(of_four / double(E * draws) - share) <= 4 * deviation);
  }
}

TEST_CASE("expert dropout: the k with the highest draws come back, and no more than are needed") {
  for (std::uint64_t step = 0; step < 300; ++step) {
    const auto alive = [&](float p, int at_least) {
      return experts::bernoulli{.p = p}.survivors(key_at(step), 8, at_least);
    };
    const ms::expert_set best = alive(0.999999f, 2);
    CHECK(best.size() == 2);
    // A smaller p lets the same experts live first.
    for (const float p : {0.9f, 0.5f, 0.1f}) {
      const ms::expert_set more = alive(p, 2);
      for (int e = 0; e < 8; ++e)
        if (best.contains(e)) CHECK(more.contains(e));
    }
  }
}

TEST_CASE("expert dropout: clusters stay whole") {
  for (const int size : {1, 2, 3, 4, 7, 100})
    for (std::uint64_t step = 0; step < 200; ++step) {
      constexpr int E = 10, K = 2;
      const ms::expert_set alive = experts::cluster{.p = 0.9f, .size = size}.survivors(key_at(step), E, K);
      CHECK(alive.size() >= K);
      for (int e = 0; e < E; ++e) CHECK(alive.contains(e) == alive.contains(e / size * size));
      if (size == 1) CHECK(alive == experts::bernoulli{.p = 0.9f}.survivors(key_at(step), E, K));
    }
}

TEST_CASE("expert dropout: the same key draws the same mask, another step, layer, seed or token another one") {
  const auto draw = [](const ms::mask_key& key) { return experts::bernoulli{.p = 0.5f}.survivors(key, 64, 2); };
  const ms::expert_set here = draw(key_at(5));
  CHECK(draw(key_at(5)) == here);
  CHECK(draw(key_at(6)) != here);
  CHECK(draw(key_at(5, 2)) != here);
  CHECK(draw(key_at(5, 1, 7)) != here);
  ms::mask_key other = key_at(5);
  other.from = ms::seed{4};
  CHECK(draw(other) != here);
}

TEST_CASE("expert dropout: one set for a step, a sequence or a token") {
  constexpr int E = 64, K = 2, sequences = 3, length = 70;
  const batch_rows rows(sequences, length);
  ms::arena memory;
  ms::cpu<float> backend;
  const auto sets = [&](mask_scope scope) {
    return ms::draw_living_experts(backend, experts::bernoulli{.p = 0.5f, .scope = scope}, key_at(2), rows.view(), E, K,
                                   memory);
  };
  const ms::living_experts step = sets(mask_scope::step), sequence = sets(mask_scope::sequence),
                           token = sets(mask_scope::token);
  CHECK(step.sets.size() == 1);
  CHECK(step.of(0) == experts::bernoulli{.p = 0.5f}.survivors(key_at(2), E, K));
  for (int n = 1; n < sequences * length; ++n) {
    CHECK((sequence.of(n) == sequence.of(n - 1)) == (n % length != 0));
    CHECK(token.of(n) != token.of(n - 1));
    CHECK(token.of(n) != step.of(0));
  }
  // A row's set is its own, whichever rows stand beside it: those that layer dropout leaves draw what they would have.
  std::vector<int> slot, position;
  for (int n = 0; n < sequences * length; n += 3)
    slot.push_back(rows.slot[std::size_t(n)]), position.push_back(rows.position[std::size_t(n)]);
  const auto count = ms::index_t(slot.size());
  const ms::token_rows few{{slot.data(), count}, {position.data(), count}};
  for (const mask_scope scope : {mask_scope::sequence, mask_scope::token}) {
    const experts::bernoulli policy{.p = 0.5f, .scope = scope};
    const ms::living_experts part = ms::draw_living_experts(backend, policy, key_at(2), few, E, K, memory);
    for (int i = 0; i < count; ++i) CHECK(part.of(i) == (scope == mask_scope::token ? token : sequence).of(3 * i));
  }
}

TEST_CASE("expert dropout: rows have numbers of their own") {
  const int last = (1 << 24) - 1;
  const std::vector<int> slot{0, 0, 0, 1, 1, 65534}, position{0, 1, last, 0, last, last};
  const ms::token_rows rows{{slot.data(), 6}, {position.data(), 6}};
  for (int n = 0; n < 6; ++n) {
    CHECK(rows.id(n) > 0);
    CHECK(rows.id(n) < std::uint64_t(1) << 40);
    for (int m = 0; m < n; ++m) CHECK(rows.id(n) != rows.id(m));
  }
}

TEST_CASE("expert dropout: schedules over depth and time") {
  using policy = experts::scheduled<experts::bernoulli, depth::exponential, over_time::linear>;
  const policy s{.policy = {.p = 0.4f, .scope = mask_scope::sequence}};
  const auto p_at = [&](int layer, double progress) {
    return s.at({.from = ms::seed{1}, .step = 0, .layer = layer, .layers = 5, .progress = progress}).p;
  };
  CHECK(p_at(0, 1) == 0);
  CHECK(p_at(4, 0) == 0);
  CHECK(p_at(4, 1) == 0.4f);
  CHECK(p_at(4, 0.5) == 0.2f);
  CHECK(p_at(2, 0.5) == doctest::Approx(0.2 * (std::sqrt(2.0) - 1)));
  CHECK(ms::scope_of(s) == mask_scope::sequence);
  ms::mask_key key = key_at(7, 3);
  CHECK(s.survivors(key, 64, 2) == experts::bernoulli{.p = 0.4f}.survivors(key, 64, 2));
  key.progress = 0;
  CHECK(s.survivors(key, 64, 2) == ms::expert_set::first(64));
}

TEST_CASE("expert dropout: names and fields come back from a checkpoint's metadata") {
  check_round_trip(experts::none{}, {{"expert_dropout", "none"}});
  check_round_trip(experts::bernoulli{.p = 0.3f, .scope = mask_scope::token},
                   {{"expert_dropout", "bernoulli"}, {"expert_dropout.p", "0.3"}, {"expert_dropout.scope", "2"}});
  check_round_trip(experts::cluster{.p = 0.3f, .size = 4, .scope = mask_scope::sequence},
                   {{"expert_dropout", "cluster"}, {"expert_dropout.size", "4"}, {"expert_dropout.scope", "1"}});
  check_round_trip(experts::output{.p = 0.3f}, {{"expert_dropout", "output"}, {"expert_dropout.p", "0.3"}});
  check_round_trip(experts::hidden{.p = 0.3f}, {{"expert_dropout", "hidden"}, {"expert_dropout.p", "0.3"}});
  check_round_trip(experts::scheduled<experts::hidden, depth::linear>{.policy = {.p = 0.3f}},
                   {{"expert_dropout", "scheduled<hidden, linear, constant>"}});
  check_round_trip(
      experts::scheduled<experts::cluster, depth::custom<4>, over_time::exponential>{.policy = {.p = 0.3f, .size = 4},
                                                                                     .depth = {{0, 0.5f, 0.5f, 1}}},
      {{"expert_dropout", "scheduled<cluster, custom, exponential>"},
       {"expert_dropout.p", "0.3"},
       {"expert_dropout.size", "4"},
       {"expert_dropout.values", "0 0.5 0.5 1"}});
}

TEST_CASE("expert dropout: numbers that make no sense are refused by name") {
  for (const float p : {-0.1f, 1.f, not_a_number}) {
    refused(experts::bernoulli{.p = p}, "expert_dropout.p must be in [0, 1)");
    refused(experts::output{.p = p}, "expert_dropout.p must be in [0, 1)");
    refused(experts::hidden{.p = p}, "expert_dropout.p must be in [0, 1)");
    refused(experts::cluster{.p = p}, "expert_dropout.p must be in [0, 1)");
    refused(experts::scheduled<experts::cluster, depth::linear>{.policy = {.p = p}},
            "expert_dropout.p must be in [0, 1)");
  }
  for (const int size : {0, -1, 513})
    refused(experts::cluster{.size = size}, "expert_dropout.size must be from 1 to 512");
  for (const int scope : {-1, 3}) {
    const std::string_view message = "expert_dropout.scope must be 0 (step), 1 (sequence) or 2 (token)";
    refused(experts::bernoulli{.scope = mask_scope(scope)}, message);
    refused(experts::cluster{.scope = mask_scope(scope)}, message);
  }
  using custom = experts::scheduled<experts::bernoulli, depth::custom<4>>;
  refused(custom{}, "");
  refused(custom{.depth = {{0, 0, 0, 1.5f}}}, "expert_dropout.values must be in [0, 1]");
  refused(experts::scheduled<experts::bernoulli, depth::custom<3>>{},
          "expert_dropout.values must be one for each of sizes.layers");
}

namespace {

constexpr ms::sizes model_sizes{
    .layers = 2, .dim = 16, .heads = 2, .kv_heads = 1, .ffn = 12, .experts = 6, .vocab = 16, .context = 64};

/// Residual streams (N, D) after the layers of a model, for 2 sequences of 9 tokens: of a training step, or of
/// inference.
template <class P> struct layers_of {
  static constexpr int sequences = 2, length = 9, D = model_sizes.dim;
  ms::model<dropping<P>, ms::reference<double>> model;
  ms::arena memory;

  explicit layers_of(const P& policy, ms::sizes s = model_sizes)
      : model({.sizes = s, .expert_dropout = policy}, ms::seed{1}) {}

  template <class Tape> std::vector<double> run(Tape& tape) {
    const std::vector<int> tokens = random_tokens(sequences * length, 16, 3);
    const batch_rows rows(sequences, length);
    ms::kv_on_arena<double> kv(memory, sequences, length, D / 2);
    ms::mat<double> x = memory.take<double>(sequences * length, D);
    model.embed(x, {tokens.data(), sequences * length});
    x = model.run_layers(0, model.layers(), x, kv, rows.view(), tape);
    return {x.begin(), x.end()};
  }
  std::vector<double> train(std::uint64_t step) {
    const auto scope = memory.scope();
    ms::tape<double> tape(memory, ms::seed{5}, step);
    return run(tape);
  }
  std::vector<double> infer() {
    const auto scope = memory.scope();
    ms::no_tape tape(memory);
    return run(tape);
  }
};

/// What a policy does leaves the expectation of one layer as it is.
template <class P> void check_expectation(const P& policy) {
  ms::sizes one_layer = model_sizes;
  one_layer.layers = 1;
  layers_of<P> masked(policy, one_layer);
  const std::vector<double> want = masked.infer();
  std::vector<double> sum(want.size()), squares(want.size());
  constexpr int steps = 2000;
  for (std::uint64_t step = 0; step < steps; ++step) {
    const std::vector<double> got = masked.train(step);
    for (std::size_t i = 0; i < got.size(); ++i) sum[i] += got[i], squares[i] += got[i] * got[i];
  }
  double worst = 0, all = 0;  // standard errors
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double mean = sum[i] / steps, variance = squares[i] / steps - mean * mean;
    REQUIRE(variance > 0);
    const double z = (mean - want[i]) / std::sqrt(variance / steps);
    worst = std::max(worst, std::abs(z)), all += z * z;
  }
  CHECK(worst < 5);
  CHECK(all / double(want.size()) < 2);
}

/// Loss and gradient of one training step on the CPU.
template <class P> std::vector<float> cpu_step(const P& policy, std::uint64_t step = 4) {
  using V = dropping<P>;
  constexpr int sequences = 5, length = 17;
  ms::model<V, ms::cpu<float>> m({.sizes = model_sizes, .expert_dropout = policy}, ms::seed{1});
  const std::vector<int> inputs = random_tokens(sequences * length, 16, 3);
  const std::vector<int> targets = random_tokens(sequences * length, 16, 4);
  ms::buffer<float> gradient(m.block().size());
  ms::model_weights<V, float> grads;
  ms::bind_weights<V, float>(m.configuration(), grads, gradient.data());
  ms::arena memory;
  const auto losses = ms::loss_and_gradient(
      m, ms::batch{{inputs.data(), inputs.size()}, {targets.data(), targets.size()}, sequences, length},
      ms::layerskip_weights({}, model_sizes.layers, 0.7), grads, ms::seed{5}, step, memory);
  std::vector<float> all(gradient.view().begin(), gradient.view().end());
  all.push_back(losses.total), all.push_back(losses.balance), all.push_back(losses.z);
  return all;
}

}  // namespace

namespace {
struct all_gone {
  static constexpr std::string_view name = "all_gone";
  ms::expert_set survivors(const ms::mask_key&, int count, int) const { return ms::expert_set::first(count); }
  float output_dropout(const ms::mask_key&) const { return 1; }
  bool operator==(const all_gone&) const = default;
};
}  // namespace

TEST_CASE("expert dropout: left out outputs and units do not move the expectation") {
  check_expectation(experts::output{.p = 0.3f});
  check_expectation(experts::hidden{.p = 0.3f});
}

TEST_CASE("expert dropout: inference does not know of it") {
  const std::vector<double> want = layers_of<experts::none>({}).infer();
  CHECK(layers_of<experts::none>({}).train(3) == want);
  const auto check = [&](const auto& policy) {
    layers_of<std::remove_cvref_t<decltype(policy)>> m(policy);
    CHECK(m.infer() == want);
    CHECK(m.train(3) != want);
    CHECK(m.train(3) == m.train(3));
    int others = 0;  // few clusters: two steps may draw the same one
    for (std::uint64_t step = 4; step < 14; ++step) others += m.train(step) != m.train(3);
    CHECK(others >= 5);
  };
  check(experts::bernoulli{.p = 0.9f, .scope = mask_scope::token});
  check(experts::cluster{.p = 0.9f});
  check(experts::output{.p = 0.9f});
  check(experts::hidden{.p = 0.9f});
}

TEST_CASE("expert dropout: p = 0 leaves every bit of a training step, and threads do not matter") {
  const std::vector<float> none = cpu_step(experts::none{});
  const int threads = ms::thread_count();
  const auto check = [&](auto policy) {
    CAPTURE(policy.name);
    ms::set_thread_count(1);
    const std::vector<float> alone = cpu_step(policy);
    for (const int n : {2, 3}) {
      ms::set_thread_count(n);
      CHECK(cpu_step(policy) == alone);
    }
    CHECK(alone != none);
    CHECK(cpu_step(policy, 5) != alone);
    policy.p = 0;
    CHECK(cpu_step(policy) == none);
  };
  for (const mask_scope scope : {mask_scope::step, mask_scope::sequence, mask_scope::token}) {
    check(experts::bernoulli{.p = 0.5f, .scope = scope});
    check(experts::cluster{.p = 0.5f, .scope = scope});
  }
  check(experts::output{.p = 0.3f});
  check(experts::hidden{.p = 0.3f});
  ms::set_thread_count(threads);
}

TEST_CASE("expert dropout: the mask of an activation hangs on token, expert and unit, and is as frequent as p") {
  const std::vector<int> slot{0, 0, 1}, position{4, 5, 4};
  const ms::activation_mask mask{
      .p = 0.3f, .from = {5}, .step = 9, .layer = 1, .rows = {{slot.data(), 3}, {position.data(), 3}}};
  constexpr int F = 8000;
  CHECK(mask.scale() == doctest::Approx(1 / 0.7).epsilon(1e-4));
  const auto factors = [&](const ms::activation_mask& m, int n, int e, int first = 0, int last = 8000) {
    std::vector<double> all(std::size_t(last - first));
    m.factors(all.data(), n, e, first, last);
    return all;
  };
  const std::vector<double> here = factors(mask, 1, 3);
  double zeros = 0, pairs = 0;
  for (std::size_t f = 0; f < F; ++f) {
    CHECK((here[f] == 0 || here[f] == mask.scale()));
    zeros += here[f] == 0, pairs += f > 0 && here[f] == 0 && here[f - 1] == 0;
  }
  CHECK(zeros / F == doctest::Approx(0.3).epsilon(0.07));  // 4 standard deviations
  CHECK(pairs / F == doctest::Approx(0.09).epsilon(0.15));
  // Any part of it is the same, and so is the row's under another number.
  for (const int first : {0, 3, 8, 13}) {
    const std::vector<double> part = factors(mask, 1, 3, first, first + 21);
    CHECK(std::equal(part.begin(), part.end(), here.begin() + first));
  }
  const std::vector<int> slot_2{1, 0}, position_2{4, 5};
  ms::activation_mask moved = mask;
  moved.rows = {{slot_2.data(), 2}, {position_2.data(), 2}};
  CHECK(factors(moved, 1, 3) == here);
  CHECK(factors(moved, 0, 3) == factors(mask, 2, 3));
  // Unit f has 16 bits of the block of its eight.
  const ms::draws draw{{5}, ms::stream::expert_activation};
  for (const int f : {0, 1, 7, 8, 100, 1003, 7999}) {
    const ms::philox_block block = draw.block(9, 1, mask.rows.id(1), std::uint64_t(3 | f / 8 << 9));
    const std::uint32_t bits = block.word[f % 8 / 2] >> (f % 2 * 16) & 0xffff;
    CHECK((here[std::size_t(f)] == 0) == (bits < std::uint32_t(std::lround(0.3 * 65536))));
  }
  // Another token, expert, layer, step or seed: another mask.
  std::vector<std::vector<double>> others{here, factors(mask, 0, 3), factors(mask, 2, 3), factors(mask, 1, 4)};
  ms::activation_mask other = mask;
  other.layer = 2, others.push_back(factors(other, 1, 3));
  other = mask, other.step = 10, others.push_back(factors(other, 1, 3));
  other = mask, other.from = {6}, others.push_back(factors(other, 1, 3));
  for (std::size_t i = 0; i < others.size(); ++i)
    for (std::size_t j = 0; j < i; ++j) CHECK(others[i] != others[j]);
  // Blocks beyond 2^15 do not repeat earlier ones.
  CHECK(factors(mask, 1, 3, 1 << 18, (1 << 18) + F) != here);
}

TEST_CASE("expert dropout: a probability that cannot be divided by its complement is refused by name") {
  CHECK_THROWS_WITH_AS(layers_of<all_gone>({}).train(1), doctest::Contains("expert_dropout all_gone"),
                       ms::config_error);
  CHECK_NOTHROW(layers_of<all_gone>({}).infer());
}

TEST_CASE_TEMPLATE("expert dropout: auxiliary losses count the survivors of each row", B, ms::reference<double>,
                   ms::cpu<float>) {
  using T = ms::scalar_t<B>;
  B backend;
  ms::arena memory;
  const T log2 = T(std::log(2.)), log5 = T(std::log(5.));
  // Row 0 may choose 0, 1 and 3, of probability (1, 2, 5) / 8; row 1 may choose 1 and 2, of probability 1/2 each.
  const T logits[] = {0, log2, 100, log5, 50, 0, 0, 90};
  const ms::mat<const T> l(logits, 2, 4);
  const std::vector<ms::expert_set> sets{ms::expert_set::first(4).erase(2), ms::expert_set::first(4).erase(0).erase(3)};
  const ms::routing_call<T> call{.alive = {{sets.data(), 2}}};
  const ms::routing<T> r{memory.take<T>(2, 4), memory.take<int>(2, 2), memory.take<T>(2, 2), memory.take<T>(4)};
  ms::route(backend, r, l, ms::router::top_k<2>{}, call, memory);
  CHECK(std::vector<int>(r.chosen.begin(), r.chosen.end()) == std::vector<int>{3, 1, 1, 2});
  const ms::auxiliary_losses<T> losses = losses_of(backend, r, l, call, memory);
  // load (0, 2, 1, 1) / 4: the mean of 3 (2/8 2/4 + 5/8 1/4) and 2 (1/2 2/4 + 1/2 1/4)
  CHECK(losses.balance == doctest::Approx((3 * 9 / 32. + 2 * 3 / 8.) / 2));
  CHECK(losses.z == doctest::Approx((std::pow(std::log(8.), 2) + std::pow(std::log(2.), 2)) / 2));
}

TEST_CASE("expert dropout: a balanced router whose rows have sets of their own moves nothing") {
  // Equal scores, and every pair of three experts survives once: E'_n / E = 2/3.
  ms::reference<double> backend;
  ms::arena memory;
  const ms::mat<double> logits = memory.take_zeroed<double>(3, 3), dgate = memory.take_zeroed<double>(3, 2),
                        dlogits = memory.take<double>(3, 3);
  const std::vector<ms::expert_set> sets{ms::expert_set::first(3).erase(0), ms::expert_set::first(3).erase(1),
                                         ms::expert_set::first(3).erase(2)};
  const ms::routing_call<double> call{.alive = {{sets.data(), 3}}};
  const ms::router::top_k<2> router;
  const ms::routing<double> r{memory.take<double>(3, 3), memory.take<int>(3, 2), memory.take<double>(3, 2),
                              memory.take<double>(3)};
  ms::route(backend, r, logits, router, call, memory);
  CHECK(losses_of(backend, r, logits, call, memory).balance == doctest::Approx(2 / 3.));
  ms::route_backward(backend, dlogits, dgate, logits, r, router, call, {.balance = 1}, memory);
  for (const double g : dlogits) CHECK(std::abs(g) < 1e-15);
}
