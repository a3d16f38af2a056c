// ctest: slow
// Whole models on the emulated CUDA backend: the code that the CPU runs, the same tokens from every decoder, and training
// steps that agree with the CPU's.
#include <doctest/doctest.h>

#include <bit>
#include <set>

#include "moeskip/cuda.hpp"
#include "tiny.hpp"

using namespace tests;

namespace {

struct everything : ms::variant {
  using router = ms::router::biased<ms::router::segment<ms::router::noisy_top_k<2>, 2, 1>>;
  using shared_expert = ms::shared_expert::gated;
  using expert_dropout = ms::expert_dropout::hidden;
  using layer_dropout = ms::layer_dropout::linear;
  using exit_head = ms::exit_head::low_rank;
};
struct plain : ms::variant {};

template <class V> ms::config<V> tiny_config() {
  ms::config<V> c{.sizes = tiny_sizes};
  c.exits = ms::exits_every(1, c.sizes.layers);
  return c;
}

/// A model whose texts are not all one token.
template <class V, class B> ms::model<V, B> lively_model() {
  ms::model<V, B> m(tiny_config<V>(), ms::seed{11});
  for (auto& w : m.block()) w = ms::to<ms::weight_t<B>>(2.f * float(w));
  return m;
}

template <class V, class W> void same_tokens() {
  auto on_cpu = lively_model<V, ms::cpu<W>>();
  auto on_phases = lively_model<V, ms::emulated_cuda<W>>();
  ms::session a(on_cpu);
  ms::session b(on_phases);
  const auto run = [](auto& s, const auto& decoder, std::uint64_t seed) {
    const std::vector<int> prompt = random_tokens(int(seed) + 3, tiny_sizes.vocab, seed);
    return ms::generate(s, prompt, {.max_new_tokens = 8}, decoder, [](const ms::emitted&) {});
  };
  const auto alike = [&](const auto& decoder, std::uint64_t seed) {
    const ms::generated expected = run(a, decoder, seed), got = run(b, decoder, seed);
    CAPTURE(decoder.name);
    CHECK(got.ids() == expected.ids());
    CHECK(got.stats.layer_steps == expected.stats.layer_steps);
    return got.ids();
  };
  for (const std::uint64_t seed : {1u, 2u}) {
    const auto whole = alike(ms::decoder::autoregressive{}, seed);
    CHECK(std::set<int>(whole.begin(), whole.end()).size() > 1);
    alike(ms::decoder::early_exit<>{.rule = {.threshold = 0.3f}}, seed);
    CHECK(alike(fixed_length{{.exit_layer = 2}, {.num_speculations = 4}}, seed) == whole);
  }
}

/// Two training steps: the losses of each and the weights after the last.
template <class V, class B, class O> std::vector<float> trained(const O& optimizer) {
  ms::model<V, B> m(tiny_config<V>(), ms::seed{5});
  ms::training<V, O> options{.steps = 10, .exit_scale = 0.3, .distill = 0.25, .optimizer = optimizer};
  ms::trainer<V, B, O> run(m, options);
  std::vector<float> out;
  for (int step = 0; step < 2; ++step) {
    const std::vector<int> ids = random_tokens(2 * 9, tiny_sizes.vocab, std::uint64_t(step));
    std::vector<int> inputs, targets;
    for (std::size_t s = 0; s < 2; ++s)
      for (std::size_t i = 0; i < 8; ++i) inputs.push_back(ids[9 * s + i]), targets.push_back(ids[9 * s + i + 1]);
    const auto data = [&](std::uint64_t, std::uint64_t) {
      return ms::batch{{inputs.data(), inputs.size()}, {targets.data(), targets.size()}, 2, 8};
    };
    const auto report = run.step(data);
    out.push_back(report.losses.total), out.push_back(float(report.gradient_norm));
    out.push_back(report.losses.balance), out.push_back(report.losses.z);
  }
  out.insert(out.end(), run.master().begin(), run.master().end());
  return out;
}

template <class V, class O> void same_training(const O& optimizer) {
  const auto expected = trained<V, ms::cpu<float>>(optimizer), got = trained<V, ms::emulated_cuda<float>>(optimizer);
  REQUIRE(expected.size() == got.size());
  float most = 0;
  for (std::size_t i = 0; i < got.size(); ++i) most = std::max(most, std::abs(got[i] - expected[i]));
  CHECK(most < 1e-4f);
}

}  // namespace

TEST_CASE("every decoder's tokens are the CPU's") {
  same_tokens<plain, float>();
  ms::emulation::here().order = 2;
  same_tokens<everything, ms::bf16>();
  ms::emulation::here() = {};
}

TEST_CASE("a token's bits do not depend on the tokens verified beside it") {
  auto m = lively_model<everything, ms::emulated_cuda<ms::bf16>>();
  ms::session together(m), alone(m);
  const std::vector<int> tokens = random_tokens(8, tiny_sizes.vocab, 3), prompt = {1, 2, 3};
  const int D = tiny_sizes.dim;
  for (auto* s : {&together, &alone}) s->prefill(prompt);
  for (const int N : {1, 2, 5, 8}) {
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

TEST_CASE("training steps with every policy on agree with the CPU's") {
  same_training<everything>(ms::adamw{.lr = 1e-2, .cautious = true});
  same_training<plain>(ms::muon{.lr = 1e-2, .iterations = 2});
}
