// Whole models that the tests of the CUDA backend and bench/gpu share.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "moeskip/cuda.hpp"
#include "tiny.hpp"
#include "variants.hpp"

namespace tests {

/// Sanitizers are slow: what they cannot say anything about is left to other builds.
#if defined(__has_feature)
  #if __has_feature(address_sanitizer)
inline constexpr bool sanitized = true;
  #else
inline constexpr bool sanitized = false;
  #endif
#else
inline constexpr bool sanitized = false;
#endif

template <class V> ms::config<V> tiny_config() {
  ms::config<V> c{.sizes = tiny_sizes};
  c.exits = ms::exits_every(1, c.sizes.layers);
  return c;
}

/// A model whose texts are not all one token, and in which weights that start at zero do something: biases, gates of
/// layers.
template <class V, class B> ms::model<V, B> lively_model() {
  ms::config<V> c = tiny_config<V>();
  if constexpr (V::layer_skip::has_gates) c.layer_skip.open = 0;
  ms::model<V, B> m(c, ms::seed{11});
  const auto block = m.block();
  for (auto& w : block) w = ms::to<ms::weight_t<B>>(2.f * float(w));
  for (const ms::tensor_info& t : m.tensors())
    for (ms::index_t i = t.offset; t.start == ms::initial::zeros && i < t.offset + t.size; ++i)
      block[i] = ms::to<ms::weight_t<B>>(float(random_number(7, std::uint64_t(i))));
  return m;
}

/// The losses of each training step, and the weights after the last.
template <class V, class B, class O> std::vector<float> trained(const O& optimizer, int steps, std::size_t length = 8) {
  ms::model<V, B> m(tiny_config<V>(), ms::seed{5});
  ms::training<V, O> options{.steps = 10, .exit_scale = 0.3, .distill = 0.25, .optimizer = optimizer};
  ms::trainer<V, B, O> run(m, options);
  std::vector<float> out;
  for (int step = 0; step < steps; ++step) {
    const std::vector<int> ids = random_tokens(2 * int(length + 1), tiny_sizes.vocab, std::uint64_t(step));
    std::vector<int> inputs, targets;
    for (std::size_t s = 0; s < 2; ++s)
      for (std::size_t i = s * (length + 1); i < s * (length + 1) + length; ++i)
        inputs.push_back(ids[i]), targets.push_back(ids[i + 1]);
    const auto data = [&](std::uint64_t, std::uint64_t) {
      return ms::batch{{inputs.data(), inputs.size()}, {targets.data(), targets.size()}, 2, int(length)};
    };
    const auto report = run.step(data);
    out.push_back(report.losses.total), out.push_back(float(report.gradient_norm));
    out.push_back(report.losses.balance), out.push_back(report.losses.z);
  }
  out.insert(out.end(), run.master().begin(), run.master().end());
  return out;
}

/// The largest difference of losses, gradients' norms and weights between training on B and on the CPU.
template <class V, class B, class O> float training_difference(const O& optimizer, int steps, std::size_t length = 8) {
  const auto expected = trained<V, ms::cpu<float>>(optimizer, steps, length);
  const auto got = trained<V, B>(optimizer, steps, length);
  float most = expected.size() == got.size() ? 0.f : INFINITY;
  for (std::size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    const float apart = std::abs(got[i] - expected[i]);
    most = apart <= most ? most : std::isnan(apart) ? INFINITY : apart;
  }
  return most;
}

/// How far the gradient of a batch on B is from the CPU's with the same weights, relative to its size.
template <class V, class B> float gradient_difference() {
  const std::vector<int> ids = random_tokens(64, tiny_sizes.vocab, 1), targets = random_tokens(64, tiny_sizes.vocab, 2);
  const auto gradient = [&]<class Where>(Where) {
    ms::model<V, Where> m(tiny_config<V>(), ms::seed{5});
    ms::arena memory;
    ms::buffer<float> block(m.block().size());
    ms::model_weights<V, float> grads;
    ms::bind_weights<V, float>(m.configuration(), grads, block.data());
    ms::loss_and_gradient(m, ms::batch{{ids.data(), 64}, {targets.data(), 64}, 2, 32},
                          ms::loss_weights(ms::exit_weight_rule::uniform, m.configuration().exits, m.layers(), 1),
                          grads, ms::seed{1}, 0, memory);
    return std::vector<double>(block.view().begin(), block.view().end());
  };
  const auto expected = gradient(ms::cpu<ms::weight_t<B>>{}), got = gradient(B{});
  double apart = 0, size = 0;
  for (std::size_t i = 0; i < got.size(); ++i)
    apart += (got[i] - expected[i]) * (got[i] - expected[i]), size += expected[i] * expected[i];
  return float(std::sqrt(apart / size));
}

}  // namespace tests
