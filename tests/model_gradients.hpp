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
  double progress;
  ms::exit_weights weights;
  std::vector<int> inputs, targets;
  int sequences = 4, length = 7;

  gradient_setup(ms::config<V> c, double share_done) : config(c), progress(share_done) {
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
    return ms::loss_and_gradient(m, data, weights, g, ms::seed{5}, 9, memory, progress).total;
  }
};

/// The largest error of any tensor's gradient, relative to that tensor's largest derivative.
template <class V> double worst_error(ms::config<V> config, double progress = 1) {
  gradient_setup<V> s(config, progress);
  ms::model<V, ms::reference<double>> real(s.config, ms::seed{7});
  ms::model<V, ms::reference<complex>> stepped(s.config, ms::seed{7});
  ms::buffer<double> gradient(real.block().size());
  ms::buffer<complex> ignored(real.block().size());
  s.loss(real, gradient);
  for (ms::index_t i = 0; i < real.block().size(); ++i) stepped.block()[i] = real.block()[i];
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

}  // namespace tests
