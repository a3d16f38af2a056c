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
  double distill = 0;

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
    return ms::loss_and_gradient(m, data, weights, g, ms::seed{5}, 9, memory, distill).total;
  }
};

/// The largest error of any tensor's gradient, relative to that tensor's largest derivative.
template <class V> double worst_error(ms::config<V> config, double distill = 0) {
  setup<V> s(config);
  s.distill = distill;
  ms::model<V, ms::reference<double>> real(s.config, ms::seed{7});
  ms::model<V, ms::reference<complex>> stepped(s.config, ms::seed{7});
  ms::buffer<double> gradient(real.block().size());
  ms::buffer<complex> ignored(real.block().size());
  for (const ms::tensor_info& t : real.tensors())  // gradients behind zeros would be zero
    if (t.start == ms::initial::zeros)
      for (ms::index_t i = 0; i < t.size; ++i) real.block()[t.offset + i] = 0.3 * random_number(8, std::uint64_t(i));
  for (ms::index_t i = 0; i < real.block().size(); ++i) stepped.block()[i] = real.block()[i];
  s.loss(real, gradient);
  double worst = 0;
  for (const ms::tensor_info& t : real.tensors()) {
    double largest = 1e-12, error = 0;
    const ms::index_t stride = std::max<ms::index_t>(1, t.size / 7);  // some weights of every tensor
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
  }
  return worst;
}

struct plain : ms::variant {};
struct everything : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using exit_head = ms::exit_head::own;
};
struct corrected : ms::variant {
  using exit_head = ms::exit_head::low_rank;
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

TEST_CASE("gradients: exits with a low-rank correction, tied and not") {
  ms::sizes s = tiny_sizes;
  CHECK(worst_error<corrected>({.sizes = s, .exit_head = {.rank = 3}}) < 1e-9);
  s.tied = true;
  CHECK(worst_error<corrected>({.sizes = s, .exit_head = {.rank = 1}}) < 1e-9);
}

// Complex steps see the teacher as a constant (ops/distillation.hpp), as the gradient does.
TEST_CASE("gradients: exits distilled from the full depth, shared, own and corrected heads") {
  CHECK(worst_error<plain>({.sizes = tiny_sizes}, 0.6) < 1e-9);
  CHECK(worst_error<everything>({.sizes = tiny_sizes, .layer_dropout = {.p_max = 0.6f}}, 1) < 1e-9);
  CHECK(worst_error<corrected>({.sizes = tiny_sizes, .exit_head = {.rank = 3}}, 0.3) < 1e-9);
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
