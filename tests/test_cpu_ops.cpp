// Whole training steps on the CPU backend against the reference in double: every forward and backward kernel takes
// part, in the shapes that models really have, with odd sizes.
#include <doctest/doctest.h>

#include "tiny.hpp"

using namespace tests;

namespace {

struct everything : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using exit_head = ms::exit_head::own;
};

template <class B> struct outcome {
  double loss;
  std::vector<double> gradient;
};

template <class B>
outcome<B> step(const ms::config<everything>& c, const std::vector<double>& weights, int sequences, int length) {
  using T = ms::scalar_t<B>;
  using W = ms::weight_t<B>;
  ms::model<everything, B> m(c, typename ms::model<everything, B>::uninitialised{});
  for (ms::index_t i = 0; i < m.block().size(); ++i) m.block()[i] = W(float(weights[std::size_t(i)]));
  const std::vector<int> inputs = random_tokens(sequences * length, c.sizes.vocab, 3);
  const std::vector<int> targets = random_tokens(sequences * length, c.sizes.vocab, 4);
  ms::buffer<T> gradient(m.block().size());
  ms::model_weights<everything, T> grads;
  ms::bind_weights<everything, T>(c, grads, gradient.data());
  ms::arena memory;
  const auto losses = ms::loss_and_gradient(
      m, ms::batch{{inputs.data(), inputs.size()}, {targets.data(), targets.size()}, sequences, length},
      ms::layerskip_weights(c.exits, c.sizes.layers, 0.7), grads, ms::seed{5}, 9, memory);
  outcome<B> out{double(losses.total), {}};
  for (const T& g : gradient.view()) out.gradient.push_back(double(g));
  return out;
}

void compare(ms::sizes s, int sequences, int length) {
  ms::config<everything> c{.sizes = s,
                           .exits = ms::exits_every(1, s.layers),
                           .expert_dropout = {.p = 0.3f},
                           .layer_dropout = {.p_max = 0.4f}};
  ms::model<everything, ms::cpu<ms::bf16>> drawn(c, ms::seed{1});  // weights that bf16 holds exactly
  std::vector<double> weights;
  for (const ms::bf16 w : drawn.block()) weights.push_back(double(float(w)));
  const auto exact = step<ms::reference<double>>(c, weights, sequences, length);
  const auto single = step<ms::cpu<float>>(c, weights, sequences, length);
  const auto half = step<ms::cpu<ms::bf16>>(c, weights, sequences, length);
  CHECK(single.loss == doctest::Approx(exact.loss).epsilon(1e-5));
  CHECK(half.loss == doctest::Approx(exact.loss).epsilon(1e-5));
  for (const ms::tensor_info& t : drawn.tensors()) {
    double error = 0, error_half = 0, square = 0;
    for (std::size_t i = std::size_t(t.offset); i < std::size_t(t.offset + t.size); ++i) {
      error += std::pow(single.gradient[i] - exact.gradient[i], 2);
      error_half += std::pow(half.gradient[i] - exact.gradient[i], 2);
      square += std::pow(exact.gradient[i], 2);
    }
    CAPTURE(t.name);
    CHECK(error <= 1e-9 * square + 1e-20);
    CHECK(error_half <= 1e-9 * square + 1e-20);
  }
}

}  // namespace

TEST_CASE("a training step on the CPU: few rows") { compare(tiny_sizes, 2, 6); }
TEST_CASE("a training step on the CPU: many rows, odd sizes") { compare(tiny_sizes, 5, 31); }
TEST_CASE("a training step on the CPU: sizes of whole vectors") {
  compare({.layers = 3,
           .dim = 64,
           .heads = 4,
           .kv_heads = 2,
           .ffn = 48,
           .experts = 6,
           .vocab = 96,
           .context = 128,
           .moe_every = 2,
           .dense_ffn = 80},
          3, 100);
}
