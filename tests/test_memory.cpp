// The memory of training: what footprint.hpp predicts from the shapes is what the arena saw.
#include <doctest/doctest.h>

#include <memory>

#include "tiny.hpp"

using namespace tests;

namespace {

using B = ms::cpu<float>;

struct plain : ms::variant {};
struct shared : ms::variant {
  using shared_expert = ms::shared_expert::gated;
  using expert_dropout = ms::expert_dropout::bernoulli;
  using exit_head = ms::exit_head::low_rank;
};
struct skipping : ms::variant {
  using layer_dropout = ms::layer_dropout::uniform;
};

constexpr ms::sizes shape{
    .layers = 4, .dim = 48, .heads = 4, .kv_heads = 2, .ffn = 40, .experts = 4, .vocab = 64, .context = 128};

ms::sizes with_moe_every(int n) {
  ms::sizes s = shape;
  s.moe_every = n;
  return s;
}

/// The arena's high-water mark after one step, and what was predicted of it.
struct outcome {
  double measured, predicted;
};

template <class V> outcome step_of(const ms::config<V>& c, int sequences, int length, ms::training<V> options = {}) {
  ms::model<V, B> m(c, ms::seed{1});
  ms::trainer<V, B> t(m, options);
  const double predicted = double(ms::training_activations(t, sequences, length).peak());
  const std::vector<int> text = random_tokens(4000, c.sizes.vocab, 3);
  ms::random_windows data(text, sequences, length, ms::seed{2});
  t.step(data);
  return {double(t.memory().high_water()), predicted};
}

template <class V> void check(const ms::config<V>& c, ms::training<V> options = {}) {
  const auto [measured, predicted] = step_of(c, 16, 128, options);
  CHECK(measured == doctest::Approx(predicted).epsilon(0.003));
}

}  // namespace

TEST_CASE("the arena's high-water mark is the predicted one") {
  for (const int every : {0, 1, 2}) {
    CAPTURE(every);
    ms::config<plain> c{.sizes = with_moe_every(every)};
    check(c);
    c.exits = ms::exits_after(1, 3);
    check(c);
    check(c, {.distill = 0.5});
  }
  SUBCASE("a large vocabulary, whose logits are made in parts") {
    ms::sizes s = shape;
    s.vocab = 2000;
    check(ms::config<plain>{.sizes = s});
  }
  SUBCASE("experts that do not fit the mould") {
    ms::config<shared> c{.sizes = with_moe_every(2), .exits = ms::exits_after(2)};
    c.sizes.shared_ffn = 200;
    for (const ms::mask_scope scope : {ms::mask_scope::step, ms::mask_scope::token}) {
      c.expert_dropout.scope = scope;
      check(c);
    }
  }
  SUBCASE("layers that sequences skip") {
    for (const float p : {0.1f, 0.5f, 0.95f}) {
      CAPTURE(p);
      ms::config<skipping> c{.sizes = with_moe_every(2), .exits = ms::exits_after(2)};
      c.layer_dropout.p_max = p;
      check(c);
    }
  }
}

TEST_CASE("activations grow with the tokens and with nothing else") {
  const ms::config<plain> c{.sizes = shape, .exits = ms::exits_after(2)};
  const double one = step_of(c, 8, 64).measured, twice = step_of(c, 16, 64).measured;
  CHECK(twice == doctest::Approx(2 * one).epsilon(0.01));
  CHECK(step_of(c, 8, 128).measured == doctest::Approx(twice).epsilon(0.01));
}

TEST_CASE("the state beside the model is stated per parameter") {
  ms::model<plain, B> m(ms::config<plain>{.sizes = shape}, ms::seed{1});
  const double parameters = double(m.block().size());
  const auto beside = [&](auto&& t) { return double(t.state_bytes()) / parameters; };
  CHECK(beside(ms::trainer<plain, B>(m, {})) == 12);                   // gradient, two moments
  CHECK(beside(ms::trainer<plain, B>(m, {.ema = 0.9})) == 16);         // and an average
  const double muon = beside(ms::trainer<plain, B, ms::muon>(m, {}));  // one momentum for matrices
  CHECK((muon > 8 && muon < 9));
  ms::model<plain, ms::cpu<ms::bf16>> narrow(ms::config<plain>{.sizes = shape}, ms::seed{1});
  CHECK(beside(ms::trainer<plain, ms::cpu<ms::bf16>>(narrow, {})) == 16);  // gradient, master copy, two moments
  ms::trainer<plain, B> t(m, {});
  CHECK(ms::describe_memory(t, 8, 64).starts_with("memory     16 bytes per parameter: 4 of weights, 12 of gradients"));
}

TEST_CASE("what the host keeps beside an arena goes with the arena's scopes, and is not in its memory") {
  ms::arena memory;
  const auto take = [&] { return memory.of_host().take<int>(1).data(); };
  const int* first = nullptr;
  {
    const auto outer = memory.scope();
    first = take();
    const int* inside = nullptr;
    {
      const auto inner = memory.scope();
      inside = take();
      CHECK(inside > first);
    }
    CHECK(take() == inside);
  }
  CHECK(memory.of_host().used() == 0);
  CHECK(take() == first);
  CHECK(memory.used() == 0);
}

TEST_CASE("two tapes on one memory may end in any order") {
  const ms::config<ms::variant> c{.sizes = tiny_sizes};
  ms::model<ms::variant, ms::cpu<float>> m(c, ms::seed{1});
  const std::vector<int> tokens = random_tokens(6, tiny_sizes.vocab, 1);
  const auto gradients = [&](bool others) {
    ms::arena memory;
    ms::buffer<float> block(m.block().size());
    ms::model_weights<ms::variant, float> grads;
    ms::bind_weights<ms::variant, float>(c, grads, block.data());
    const auto forward = [&](ms::tape<float>& tape) {
      ms::kv_on_arena<float> kv(memory, 1, 6, c.sizes.kv_groups() * c.sizes.head_size());
      const auto x = memory.take<float>(6, c.sizes.dim);
      m.embed(x, {tokens.data(), 6});
      m.run_layers(0, m.layers(), x, kv, ms::batch_rows(1, 6, memory.of_host()), tape);
    };
    auto first = std::make_unique<ms::tape<float>>(memory, ms::seed{1}, 0);
    if (others) forward(*first);
    ms::tape<float> second(memory, ms::seed{1}, 1);
    forward(second);
    first.reset();
    ms::tape<float> third(memory, ms::seed{1}, 2);
    if (others) forward(third), forward(third);  // more than the first one's
    const auto dx = memory.take<float>(6, c.sizes.dim);
    for (float& d : dx) d = 1;
    for (int l = m.layers() - 1; l >= 0; --l) m.layer_backward(l, dx, grads, second, 1);
    return std::vector<float>(block.view().begin(), block.view().end());
  };
  CHECK(gradients(true) == gradients(false));
}
