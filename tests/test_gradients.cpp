// Gradients of whole models against the complex-step derivative (Squire and Trapp 1998): d f / d w = Im f(w + i h) / h,
// exact to rounding because nothing is subtracted.
#include <doctest/doctest.h>

#include <complex>

#include "tiny.hpp"

using namespace tests;
using complex = std::complex<double>;

namespace {

constexpr double h = 1e-40;

template <class V> struct setup {
  ms::config<V> config;
  ms::exit_weights weights;
  std::vector<int> inputs, targets;
  int sequences = 4, length = 7;

  explicit setup(ms::config<V> c) : config(c) {
    config.exits = ms::exits_after(1, 2, 3);
    weights = ms::layerskip_weights(config.exits, config.sizes.layers, 0.7);
    weights[1] = 0.05;  // the formula gives the first exit none; here its path is tested too
    inputs = random_tokens(sequences * length, config.sizes.vocab, 3);
    targets = random_tokens(sequences * length, config.sizes.vocab, 4);
  }

  template <class B, class T> T loss(ms::model<V, B>& m, ms::buffer<T>& grads) {
    ms::arena memory;
    ms::model_weights<V, T> g;
    ms::bind_weights<V, T>(config, g, grads.data());
    const ms::batch data{{inputs.data(), inputs.size()}, {targets.data(), targets.size()}, sequences, length};
    return ms::loss_and_gradient(m, data, weights, g, ms::seed{5}, 9, memory).total;
  }
};

template <class T> ms::buffer<T> copy_of(ms::vec<T> values) {
  ms::buffer<T> copy(values.size());
  std::copy(values.begin(), values.end(), copy.view().begin());
  return copy;
}

/// The error of `gradient` along a random direction through weights [first, first + count), relative to the length of
/// the terms of which that derivative is the sum. Every one of these weights takes part.
template <class V, class Stepped> double directional_error(setup<V>& s, Stepped& stepped,
                                                           const ms::buffer<double>& gradient, ms::index_t first,
                                                           ms::index_t count, std::uint64_t seed) {
  const ms::buffer<complex> before = copy_of(stepped.block());
  ms::buffer<complex> ignored(before.size());
  double expected = 0, squares = 0;
  for (ms::index_t i = first; i < first + count; ++i) {
    const double direction = random_number(seed, std::uint64_t(i)), term = gradient[i] * direction;
    stepped.block()[i] += complex(0, h * direction);
    expected += term, squares += term * term;
  }
  const double derivative = s.loss(stepped, ignored).imag() / h;
  std::copy(before.view().begin(), before.view().end(), stepped.block().begin());
  return std::abs(derivative - expected) / std::max(1e-12, std::sqrt(squares));
}

/// The largest error of any tensor's gradient, relative to that tensor's largest derivative: some weights of every
/// tensor one by one, then all of them in random directions through each tensor and through the whole model.
template <class V> double worst_error(ms::config<V> config, double top_weight = -1) {
  setup<V> s(config);
  if (top_weight >= 0) s.weights[std::size_t(config.sizes.layers)] = top_weight;
  ms::model<V, ms::reference<double>> real(s.config, ms::seed{7});
  ms::model<V, ms::reference<complex>> stepped(s.config, ms::seed{7});
  ms::buffer<double> gradient(real.block().size());
  ms::buffer<complex> ignored(real.block().size());
  s.loss(real, gradient);
  for (ms::index_t i = 0; i < real.block().size(); ++i) stepped.block()[i] = real.block()[i];
  double worst = 0;
  for (const ms::tensor_info& t : real.tensors()) {
    double largest = 1e-12, error = 0;
    const ms::index_t stride = std::max<ms::index_t>(1, t.size / 4);  // some weights of every tensor
    for (ms::index_t i = t.offset; i < t.offset + t.size; i += stride) {
      stepped.block()[i] += complex(0, h);
      const double derivative = s.loss(stepped, ignored).imag() / h;
      stepped.block()[i] = real.block()[i];
      largest = std::max(largest, std::abs(derivative));
      error = std::max(error, std::abs(derivative - gradient[i]));
    }
    INFO(t.name, " error ", error, " of ", largest);
    CHECK(error / largest < 1e-9);
    worst = std::max(worst, error / largest);
    for (const std::uint64_t seed : {31u, 32u}) {
      const double along = directional_error(s, stepped, gradient, t.offset, t.size, seed);
      CHECK(along < 1e-9);
      worst = std::max(worst, along);
    }
  }
  for (const std::uint64_t seed : {41u, 42u, 43u, 44u})
    worst = std::max(worst, directional_error(s, stepped, gradient, 0, gradient.size(), seed));
  return worst;
}

struct plain : ms::variant {};
struct everything : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using exit_head = ms::exit_head::own;
};
struct own_heads : ms::variant {
  using exit_head = ms::exit_head::own;
};
struct switching : ms::variant {
  using router = ms::router::switch_top1;
  using layer_dropout = ms::layer_dropout::linear;
};

}  // namespace

TEST_CASE("gradients: top-2, renormalised, shared exits") {
  CHECK(worst_error<plain>({.sizes = tiny_sizes, .router = {.balance_loss = 0.3f, .z_loss = 0.2f}}) < 1e-9);
}

TEST_CASE("gradients: top-2 without renormalisation, tied unembedding") {
  ms::sizes s = tiny_sizes;
  s.tied = true;
  CHECK(worst_error<plain>({.sizes = s, .router = {.renormalise = false}}) < 1e-9);
}

TEST_CASE("gradients: softmax after the selection, every layer MoE") {
  ms::sizes s = tiny_sizes;
  s.moe_every = 1;
  CHECK(worst_error<plain>({.sizes = s, .router = {.order = ms::router::softmax_order::after_selection}}) < 1e-9);
}

TEST_CASE("gradients: expert dropout, layer dropout, own exits") {
  ms::sizes s = tiny_sizes;
  s.moe_every = 1;
  CHECK(worst_error<everything>({.sizes = s, .expert_dropout = {.p = 0.5f}, .layer_dropout = {.p_max = 0.6f}}) < 1e-9);
}

TEST_CASE("gradients: switch routing with capacity and layer dropout") {
  CHECK(worst_error<switching>(
            {.sizes = tiny_sizes, .router = {.capacity_factor = 0.7f}, .layer_dropout = {.p_max = 0.4f}}) < 1e-9);
}

TEST_CASE("gradients: no MoE layer") {
  ms::sizes s = tiny_sizes;
  s.moe_every = 0;
  CHECK(worst_error<plain>({.sizes = s}) < 1e-9);
}

TEST_CASE("gradients: nothing but exits below the top learns, with heads of their own and with a shared one") {
  CHECK(worst_error<own_heads>({.sizes = tiny_sizes}, 0) < 1e-9);
  CHECK(worst_error<plain>({.sizes = tiny_sizes}, 0) < 1e-9);
}
