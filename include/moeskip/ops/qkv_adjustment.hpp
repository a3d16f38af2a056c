// What becomes of queries, keys and values between their product with the weights and the rotation by position, as a
// description that a backend may carry out while it reads them: a bias is added, then queries and keys are normalised.
//   qkv (N, (H + 2G)·d), or its keys and values alone (N, 2G·d)
#pragma once

#include "moeskip/ops/add_bias.hpp"
#include "moeskip/ops/norm_groups.hpp"
#include "moeskip/ops/rope.hpp"

namespace moeskip {

/// What is empty is not done. A gain of d numbers normalises each head for itself, one of H·d or G·d all heads of a
/// row's queries or keys together.
template <class W> struct qkv_adjustment {
  vec<const W> bias{};              // ((H + 2G)·d)
  vec<const W> q_gain{}, k_gain{};  // (d), or (H·d) and (G·d)
  float eps = 0;                    // of the norms
};

/// Throws shape_error unless bias and gains fit the shape.
template <class W>
void expect_adjustment(std::string_view op, const qkv_adjustment<W>& a, const attention_shape& shape) {
  if (a.bias.data()) expect_shape(op, "bias", a.bias, shape.q_dim() + 2 * shape.kv_dim());
  const auto gain = [&](const char* argument, vec<const W> g, int together) {
    MOESKIP_CHECK(shape_error, !g.data() || g.size() == shape.head_dim || g.size() == together, op, ": ", argument,
                  " must be (", shape.head_dim, ") or (", together, "), got ", shape_of(g));
  };
  gain("q_gain", a.q_gain, shape.q_dim()), gain("k_gain", a.k_gain, shape.kv_dim());
}

/// qkv (N, (H + 2G)·d) or (N, 2G·d), in place. Throws shape_error.
template <class B>
void adjust(B& b, mat<scalar_t<B>> qkv, const qkv_adjustment<weight_t<B>>& a, const attention_shape& shape) {
  using gains = vec<const weight_t<B>>;
  expect_adjustment("adjust", a, shape);
  const index_t P = qkv.cols(), q_dim = P - 2 * shape.kv_dim();
  const auto normalise = [&](gains gain, index_t first, index_t dim) {
    if (gain.data() && dim) norm_groups(b, qkv, gain, {first, dim / gain.size(), gain.size()}, a.eps);
  };
  if (a.bias.data()) add_bias(b, qkv, gains(a.bias.end() - P, P));
  normalise(a.q_gain, 0, q_dim), normalise(a.k_gain, q_dim, shape.kv_dim());
}

}  // namespace moeskip
