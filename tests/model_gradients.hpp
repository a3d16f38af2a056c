// Gradients of whole models against the complex-step derivative (Squire and Trapp 1998): d f / d w = Im f(w + i h) / h,
// exact to rounding because nothing is subtracted.
#pragma once

#include <doctest/doctest.h>

#include <complex>

#include "tiny.hpp"

namespace tests {

using complex = std::complex<double>;

inline constexpr double h = 1e-40;

template <class V> struct gradient_setup {
  ms::config<V> config;
  ms::loss_options options;
  ms::exit_weights weights;
  std::vector<int> inputs, targets;
  int sequences = 4, length = 7;

  gradient_setup(ms::config<V> c, const ms::loss_options& o) : config(c), options(o) {
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
    return ms::loss_and_gradient(m, data, weights, g, ms::seed{5}, 9, memory, options).total;
  }
};

template <class T> ms::buffer<T> copy_of(ms::vec<T> values) {
  ms::buffer<T> copy(values.size());
  std::copy(values.begin(), values.end(), copy.view().begin());
  return copy;
}

/// The error of `gradient` along a random direction through weights [first, first + count), relative to the length of
/// the terms of which that derivative is the sum. Every one of these weights takes part.
template <class V, class Stepped> double directional_error(gradient_setup<V>& s, Stepped& stepped,
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
/// top_weight: of the full depth in the loss, where it is not what the formula says.
template <class V>
double worst_error(ms::config<V> config, const ms::loss_options& options = {}, double top_weight = -1) {
  gradient_setup<V> s(config, options);
  if (top_weight >= 0) s.weights[std::size_t(config.sizes.layers)] = top_weight;
  ms::model<V, ms::reference<double>> real(s.config, ms::seed{7});
  ms::model<V, ms::reference<complex>> stepped(s.config, ms::seed{7});
  ms::buffer<double> gradient(real.block().size());
  ms::buffer<complex> ignored(real.block().size());
  for (const ms::tensor_info& t : real.tensors())  // gradients behind zeros would be zero
    if (t.start == ms::initial::zeros)
      for (ms::index_t i = 0; i < t.size; ++i) real.block()[t.offset + i] = 0.3 * random_number(8, std::uint64_t(i));
  for (ms::index_t i = 0; i < real.block().size(); ++i) stepped.block()[i] = real.block()[i];
  s.loss(real, gradient);
  for (const ms::tensor_info& t : real.tensors())  // choices are discrete; what stands there is no gradient
    if (t.kind == ms::tensor_kind::selection_bias)
      for (ms::index_t i = 0; i < t.size; ++i) gradient[t.offset + i] = 0;
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

}  // namespace tests
