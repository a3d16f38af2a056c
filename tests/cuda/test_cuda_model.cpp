// Whole models on the emulated CUDA backend: the code that the CPU runs, the same tokens from every decoder, and
// training steps that agree with the CPU's.
#include <doctest/doctest.h>

#include <bit>
#include <set>

#include "models.hpp"

using namespace tests;

namespace {

template <class V, class W> void same_tokens(std::uint64_t prompts) {
  auto on_cpu = lively_model<V, ms::cpu<W>>();
  auto on_phases = lively_model<V, ms::emulated_cuda<W>>();
  ms::session a(on_cpu);
  ms::session b(on_phases);
  const auto run = [](auto& s, const auto& decoder, std::uint64_t seed) {
    const std::vector<int> prompt = random_tokens(int(seed) + 3, tiny_sizes.vocab, seed);
    return ms::generate(s, prompt, {.max_new_tokens = 6}, decoder, [](const ms::emitted&) {});
  };
  const auto alike = [&](const auto& decoder, std::uint64_t seed) {
    const ms::generated expected = run(a, decoder, seed), got = run(b, decoder, seed);
    CAPTURE(decoder.name);
    CHECK(got.ids() == expected.ids());
    CHECK(got.stats.layer_steps == expected.stats.layer_steps);
    return got.ids();
  };
  for (std::uint64_t seed = 1; seed <= prompts; ++seed) {
    const auto whole = alike(ms::decoder::autoregressive{}, seed);
    CHECK(std::set<int>(whole.begin(), whole.end()).size() > 1);
    alike(ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}}, seed);
    CHECK(alike(fixed_length{{.exit_layer = 2}, {.num_speculations = 4}}, seed) == whole);
  }
}

}  // namespace

TEST_CASE("every decoder's tokens are the CPU's") {
  same_tokens<plain, float>(2);
  ms::emulation::here().order = 2;
  same_tokens<everything, ms::bf16>(1);
  ms::emulation::here().order = 1;
  same_tokens<four_matrices, float>(1);
  same_tokens<wide_norms, float>(1);
  same_tokens<hashed, float>(1);
  ms::emulation::here() = {};
}

TEST_CASE("a call of layers waits for the device once, at its end") {
  auto m = lively_model<plain, ms::emulated_cuda<ms::bf16>>();
  ms::session s(m);
  s.prefill(random_tokens(5, tiny_sizes.vocab, 1));
  const auto x = s.memory().take<float>(2, tiny_sizes.dim);
  const std::vector<int> tokens = {1, 2};
  s.embed(x, {tokens.data(), 2}, 4);
  const long long before = ms::emulation::here().waits;
  s.run(0, m.layers(), x, 4);
  CHECK(ms::emulation::here().waits == before + 1);
}

TEST_CASE("a layer of a decoding step is five phases") {
  auto m = lively_model<plain, ms::emulated_cuda<ms::bf16>>();
  ms::session s(m);
  s.prefill(random_tokens(5, tiny_sizes.vocab, 1));
  const auto x = s.memory().take<float>(1, tiny_sizes.dim);
  s.embed(x, 1, 4);
  const int layer = m.layers() - 1;  // with experts
  const long long before = ms::emulation::here().launches;
  s.run(layer, layer + 1, x, 4);
  // norm and projection; biases, rope, append and attention; output, norm and routing; units; down
  CHECK(ms::emulation::here().launches == before + 5);
}

namespace tests {

/// Chooses one expert that does not exist, or one twice.
struct bad_router : ms::router::top_k<2> {
  int bad = 99;
  template <class T> void choose(const ms::routed_token<T>& t) const { t.chosen[0] = 1, t.chosen[1] = bad; }
  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    ms::router::top_k<2>::fields(self, f), f("bad", self.bad);
  }
  friend bool operator==(const bad_router&, const bad_router&) = default;
};
template <class R> struct badly_routed : ms::variant { using router = R; };

}  // namespace tests

namespace tests {

/// A user's projection that only knows how to do it: the library's biases.
struct only_does {
  static constexpr std::string_view name = "only_does";
  static constexpr bool keeps_input = false;
  static constexpr ms::index_t active_weights(const ms::sizes& s) { return ms::projection::biased::active_weights(s); }
  template <class W> struct weights {
    ms::projection::biased::weights<W> all;
    template <class Tensor> void tensors(const ms::sizes& s, Tensor&& tensor) { all.tensors(s, tensor); }
    template <class B> void forward(B& b, ms::mat<ms::scalar_t<B>> qkv, const ms::sizes& s) const {
      all.forward(b, qkv, s);
    }
  };
};
struct users : ms::variant {
  using projection = only_does;
};

}  // namespace tests

TEST_CASE_TEMPLATE("a projection that only has forward() gets the bits of one that describes itself", B, ms::cpu<float>,
                   ms::emulated_cuda<float>) {
  const auto made = []<class V>(V) {
    auto m = lively_model<V, B>();
    ms::session<V, B> s(m);
    const std::vector<int> tokens = random_tokens(3, tiny_sizes.vocab, 3);
    const auto x = s.memory().template take<float>(3, tiny_sizes.dim);
    s.embed(x, {tokens.data(), 3}, 0);
    s.run(0, m.layers(), x, 0);
    return std::vector<float>(x.begin(), x.end());
  };
  CHECK(made(users{}) == made(plain{}));
}

TEST_CASE_TEMPLATE("choices that are none are found when a call ends, and touch no memory before", R, bad_router,
                   ms::router::sticky<bad_router>) {
  for (const auto& [bad, complaint] :
       {std::pair{99, "the router chose expert 99 of 4"}, std::pair{2'000'000, "the router chose expert 2000000 of 4"},
        std::pair{-3, "the router chose expert -3 of 4"}, std::pair{1, "the router chose expert 1 twice"}}) {
    ms::config<badly_routed<R>> c{.sizes = tiny_sizes};
    c.sizes.experts = 4;
    if constexpr (std::same_as<R, bad_router>) c.router.bad = bad;
    else c.router.base.bad = bad;
    ms::model<badly_routed<R>, ms::emulated_cuda<float>> m(c, ms::seed{1});
    ms::session s(m);
    std::vector<int> prompt = {1, 2, 3};
    CHECK_THROWS_WITH_AS(s.prefill(prompt), complaint, ms::config_error);
    prompt.resize(20, 3);  // more rows than one phase routes
    CHECK_THROWS_WITH_AS(s.prefill(prompt), complaint, ms::config_error);
    const auto budget = s.meter().limit_experts(1);
    CHECK_THROWS_WITH_AS(s.prefill(prompt), complaint, ms::config_error);
  }
}

namespace tests {

/// Leaves one expert, and two must be chosen.
struct stingy : ms::expert_dropout::none {
  static constexpr std::string_view name = "stingy";
  MOESKIP_HD ms::expert_set survivors(const ms::mask_key&, int, int) const { return ms::expert_set::first(1); }
};
struct without_first : ms::expert_dropout::none {
  static constexpr std::string_view name = "without_first";
  MOESKIP_HD ms::expert_set survivors(const ms::mask_key&, int experts, int) const {
    return ms::expert_set::first(experts).erase(0);
  }
};
/// Chooses as if no expert were dropped.
struct heedless : ms::router::top_k<2> {
  template <class T> void choose(const ms::routed_token<T>& t) const { t.chosen[0] = 0, t.chosen[1] = 1; }
};
struct badly_masked : ms::variant {
  using expert_dropout = stingy;
};
struct badly_heeded : ms::variant {
  using router = heedless;
  using expert_dropout = without_first;
};

}  // namespace tests

TEST_CASE("choices that are none are found when training has gone forward, and weights are as they were") {
  double distill = 0;
  SUBCASE("exits learn from the text") {}
  SUBCASE("exits learn from the top") { distill = 0.5; }
  const auto refuses = [&]<class V>(const ms::config<V>& c, const char* complaint) {
    ms::model<V, ms::emulated_cuda<float>> m(c, ms::seed{1});
    ms::trainer<V, ms::emulated_cuda<float>> run(m, {.distill = distill});
    const std::vector<float> before(m.block().begin(), m.block().end());
    const std::vector<int> text = random_tokens(60, tiny_sizes.vocab, 1);
    for (const int length : {12, 4}) {  // more rows than one phase routes, and fewer
      ms::random_windows batches(text, 2, length, ms::seed{1});
      for (int again = 0; again < 2; ++again) CHECK_THROWS_WITH_AS(run.step(batches), complaint, ms::config_error);
    }
    CHECK(std::equal(before.begin(), before.end(), m.block().begin()));
    CHECK(run.next_step() == 0);
  };
  ms::config<badly_routed<bad_router>> c{.sizes = tiny_sizes};
  for (const auto& [bad, complaint] :
       {std::pair{99, "the router chose expert 99 of 5"}, std::pair{-3, "the router chose expert -3 of 5"},
        std::pair{1, "the router chose expert 1 twice"}})
    c.router.bad = bad, refuses(c, complaint);
  refuses(ms::config<badly_masked>{.sizes = tiny_sizes},
          "expert_dropout stingy left fewer experts than a token visits: expected at least 2, got 1");
  refuses(ms::config<badly_heeded>{.sizes = tiny_sizes}, "the router chose expert 0, which was dropped out");
}

TEST_CASE("who fails in the middle of a call leaves nothing behind to be done") {
  struct lonely : ms::no_tape {
    using ms::no_tape::no_tape;
    static ms::expert_set living(int layer, int count) { return ms::expert_set::first(layer ? 1 : count); }
  };
  using B = ms::emulated_cuda<float>;
  {
    auto m = lively_model<plain, B>();
    ms::arena memory;
    lonely watch(memory);
    ms::kv_cache<float> kv(m.layers(), 1, 4, m.sizes().kv_groups() * m.sizes().head_size());
    const std::vector<int> zero = {0};
    const ms::token_rows rows{{zero.data(), 1}, {zero.data(), 1}, {zero.data(), 1}};
    const auto x = memory.take<float>(1, m.sizes().dim);
    m.embed(x, rows.token);
    CHECK_THROWS_AS(m.run_layers(0, m.layers(), x, kv, rows, watch), ms::config_error);
  }
  const long long before = ms::emulation::here().launches;
  B other;
  ms::settle(other);  // the model is gone
  CHECK(ms::emulation::here().launches == before);
}

TEST_CASE("a token's bits do not depend on the tokens verified beside it") {
  auto m = lively_model<everything, ms::emulated_cuda<ms::bf16>>();
  ms::session together(m), alone(m);
  const std::vector<int> tokens = random_tokens(8, tiny_sizes.vocab, 3), prompt = {1, 2, 3};
  const int D = tiny_sizes.dim;
  for (auto* s : {&together, &alone}) s->prefill(prompt);
  for (const int N : {1, 3, 8}) {
    const auto x = together.memory().take<float>(N, D), y = alone.memory().take<float>(1, D);
    together.embed(x, {tokens.data(), N}, 2);
    together.run(0, m.layers(), x, 2);
    for (int n = 0; n < N; ++n) {
      alone.embed(y, tokens[std::size_t(n)], 2 + n);
      alone.run(0, m.layers(), y, 2 + n);
      for (int i = 0; i < D; ++i) CHECK(std::bit_cast<int>(x(n, i)) == std::bit_cast<int>(y(0, i)));
    }
  }
}

TEST_CASE("training steps with every policy on agree with the CPU's, whatever it masks") {
  using B = ms::emulated_cuda<float>;
  const auto agrees = [](const auto& policy) {
    using V = dropping<std::decay_t<decltype(policy)>>;
    CHECK(training_difference<V, B>(ms::adamw{.lr = 1e-2}, 3) < 1e-4f);
  };
  using namespace ms::expert_dropout;
  using deeper = scheduled<cluster, ms::depth::linear, ms::over_time::constant>;
  agrees(mine::expert_dropout{}), agrees(bernoulli{}), agrees(output{}), agrees(deeper{});
  CHECK(training_difference<mine, B>(ms::adamw{.lr = 1e-2}, 2) < 1e-4f);
  CHECK(training_difference<by_the_host, B>(ms::adamw{.lr = 1e-2}, 2) < 1e-4f);
  CHECK(training_difference<hashed, B>(ms::adamw{.lr = 1e-2}, 2) < 1e-4f);
  CHECK(training_difference<everything, B>(ms::adamw{.lr = 1e-2, .cautious = true}, 2) < 1e-4f);
  CHECK(training_difference<plain, B>(ms::muon{.lr = 1e-2, .iterations = 2}, 2) < 1e-4f);
}

namespace {

/// 64 rows of logits at a time.
struct few_logits : ms::driver::emulator {
  static constexpr ms::index_t logits_at_once = 1;
};

struct losses_of_batch {
  std::vector<float> numbers;  // losses, gradients
  long long waits;
};
template <class B> losses_of_batch losses_of_batch_on(double distill) {
  auto m = lively_model<plain, B>();
  ms::arena memory;
  ms::buffer<float> block(m.block().size());
  ms::model_weights<plain, float> grads;
  ms::bind_weights<plain, float>(m.configuration(), grads, block.data());
  const std::vector<int> inputs = random_tokens(150, tiny_sizes.vocab, 1), targets = random_tokens(150, 17, 2);
  const long long before = ms::emulation::here().waits;
  const auto losses =
      ms::loss_and_gradient(m, ms::batch{{inputs.data(), 150}, {targets.data(), 150}, 5, 30},
                            ms::loss_weights(ms::exit_weight_rule::uniform, m.configuration().exits, m.layers(), 1),
                            grads, ms::seed{1}, 0, memory, {.distill = distill});
  const long long waits = ms::emulation::here().waits - before;
  losses_of_batch out{{losses.total}, waits};
  for (const auto& some : {losses.exits, losses.divergence})
    out.numbers.insert(out.numbers.end(), some.begin(), some.end());
  out.numbers.insert(out.numbers.end(), block.view().begin(), block.view().end());
  return out;
}

}  // namespace

TEST_CASE("logits made in parts give the same losses and gradients; layers, exits and parts are not waited for") {
  for (const double distill : {0.0, 0.25}) {
    CAPTURE(distill);
    const auto expected = losses_of_batch_on<ms::cpu<float>>(distill),
               whole = losses_of_batch_on<ms::emulated_cuda<float>>(distill);
    const auto parts = losses_of_batch_on<ms::cuda<float, few_logits, float>>(distill);
    CHECK(whole.waits == 2);  // forward and backward
    CHECK(parts.waits == whole.waits);
    for (std::size_t i = 0; i < expected.numbers.size(); ++i) {
      CAPTURE(i);
      CHECK(parts.numbers[i] == doctest::Approx(whole.numbers[i]).epsilon(1e-4));
      CHECK(parts.numbers[i] == doctest::Approx(expected.numbers[i]).epsilon(1e-3));
    }
  }
}

TEST_CASE_TEMPLATE("a training step waits as often for six layers as for two", V, plain, everything, mine,
                   dropping<ms::expert_dropout::output>) {
  const auto waits = [](int layers) {
    ms::config<V> c{.sizes = tiny_sizes, .exits = ms::exits_after(1)};
    c.sizes.layers = layers;
    ms::model<V, ms::emulated_cuda<float>> m(c, ms::seed{1});
    ms::trainer<V, ms::emulated_cuda<float>> run(m, {.distill = 0.5});
    const std::vector<int> text = random_tokens(60, tiny_sizes.vocab, 1);
    ms::random_windows batches(text, 2, 6, ms::seed{1});
    const long long before = ms::emulation::here().waits;
    run.step(batches);
    return ms::emulation::here().waits - before;
  };
  CHECK(waits(2) == 4);  // forward, backward; the gradient's norm, the weights
  CHECK(waits(6) == 4);
}

TEST_CASE("what the host wrote is brought to the device: weights to a session's, all that training keeps to a step's") {
  using B = ms::emulated_cuda<ms::bf16>;
  auto& brought = ms::emulation::here().brought;
  const auto has = [&](const void* p) { return std::count(brought.begin(), brought.end(), p) == 1; };
  auto m = lively_model<plain, B>();
  brought.clear();
  ms::session s(m), another(m);
  CHECK(brought.size() == 1);
  CHECK(has(m.block().data()));
  ms::trainer run(m, ms::training<plain>{.steps = 4, .ema = 0.9});
  const std::vector<int> text = random_tokens(200, tiny_sizes.vocab, 1);
  ms::random_windows batches(text, 2, 8, ms::seed{1});
  brought.clear();
  run.step(batches), run.step(batches);
  CHECK(brought.size() == 6);  // weights, gradients, master, average, two moments
  CHECK(has(m.block().data()));
  CHECK(has(run.master().data()));
  CHECK(has(run.average().data()));
  run.optimizer_state().blocks([&](std::string_view, const auto&, auto& block) { CHECK(has(block.data())); });
  run.continue_at(run.next_step());  // whoever says so has written them
  run.step(batches);
  CHECK(brought.size() == 12);
}

TEST_CASE("a batch that is refused half-way leaves nothing behind to be done") {
  using B = ms::emulated_cuda<float>;
  {
    auto m = lively_model<plain, B>();
    ms::trainer<plain, B> t(m, {});
    const std::vector<int> inputs(8, 1), targets(8, tiny_sizes.vocab);
    CHECK_THROWS_AS(t.step([&](auto, auto) {
      return ms::batch{{inputs.data(), 8}, {targets.data(), 8}, 1, 8};
    }),
                    ms::config_error);
  }
  const long long before = ms::emulation::here().launches;
  B other;
  ms::settle(other);  // the model is gone
  CHECK(ms::emulation::here().launches == before);
}

TEST_CASE("training whose dense products a BLAS makes agrees with the CPU's") {
  using B = ms::emulated_cuda<float>;
  ms::emulation::here().gemm = true;
  CHECK(training_difference<everything, B>(ms::adamw{.lr = 1e-2, .cautious = true}, 2, 12) < 1e-4f);
  CHECK(ms::emulation::here().gemms > 100);
  ms::emulation::here() = {};
}

TEST_CASE("training on tensor cores has the losses and gradients of training in f32, but for rounding") {
  const auto losses = [](const std::vector<float>& all) { return std::vector<double>(all.begin(), all.begin() + 12); };
  const ms::adamw optimizer{.lr = 1e-3};
  const auto expected = losses(trained<plain, ms::cpu<float>>(optimizer, 3, 30));
  const auto got = losses(trained<plain, ms::emulated_cuda<float, ms::bf16>>(optimizer, 3, 30));
  for (std::size_t i = 0; i < expected.size(); ++i) {
    CAPTURE(i);
    CHECK(got[i] == doctest::Approx(expected[i]).epsilon(0.02));
  }
  CHECK(got != expected);
}

TEST_CASE("the gradient with weights and products in bf16 is the CPU's, but for rounding") {
  using ms::bf16;
  const auto rounds = []<class V>(V) {
    CHECK(gradient_difference<V, ms::emulated_cuda<bf16, float>>() < 1e-5f);
    const float apart = gradient_difference<V, ms::emulated_cuda<bf16>>();
    CHECK(apart < 0.02f);
    CHECK(apart > 1e-3f);
  };
  rounds(plain{});
  if (!sanitized) rounds(everything{}), rounds(mine{});
}

TEST_CASE("a long prompt leaves the same keys where products are rounded, but for rounding") {
  bool by_blas = false;
  SUBCASE("by own kernels") {}
  SUBCASE("by a BLAS") { by_blas = true; }
  const std::vector<int> prompt = random_tokens(30, tiny_sizes.vocab, 2);
  const auto keys = [&]<class B>(B) {  // (29, G·d) of the second layer
    auto m = lively_model<plain, B>();
    ms::session s(m);
    s.prefill(prompt);
    const auto all = s.keys_values(1).keys.plane(0);
    return std::vector<double>(all.data(), all.data() + 29 * all.cols());
  };
  ms::emulation::here().gemm = by_blas;
  const auto exact = keys(ms::emulated_cuda<ms::bf16, float>{}), rounded = keys(ms::emulated_cuda<ms::bf16>{});
  CHECK((ms::emulation::here().gemms > 0) == by_blas);
  ms::emulation::here() = {};
  const std::size_t width = exact.size() / 29;
  int close = 0;  // a token whose experts are as good as equal may take others
  for (std::size_t n = 0; n < exact.size(); n += width) {
    double apart = 0, size = 0;
    for (std::size_t i = n; i < n + width; ++i)
      apart += (exact[i] - rounded[i]) * (exact[i] - rounded[i]), size += exact[i] * exact[i];
    close += std::sqrt(apart / size) < 0.03;
  }
  CHECK(close >= 24);
  CHECK(exact != rounded);
}
