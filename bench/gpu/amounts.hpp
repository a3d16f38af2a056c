// What decoding must read, counted: weights, each once a call, and keys and values of the text so far.
#pragma once

#include "moeskip/model/weights_read.hpp"

namespace bench {

namespace ms = moeskip;

struct amount {
  double weights = 0, keys_values = 0;  // elements

  amount& operator+=(const amount& more) {
    weights += more.weights, keys_values += more.keys_values;
    return *this;
  }
  friend amount operator+(amount a, const amount& b) { return a += b; }
  friend amount operator*(double n, const amount& a) { return {n * a.weights, n * a.keys_values}; }
  /// Weights in bf16.
  double bytes(double of_key) const { return 2 * weights + of_key * keys_values; }
};
inline constexpr double kept_in_float = 4, kept_in_bf16 = 2;  // bytes of a key's or a value's element

/// Layers [first, last) in a call that sees `context` tokens, but for experts.
template <class V> amount of_layers(const ms::config<V>& c, int first, int last, double context) {
  amount a;
  for (int l = first; l < last; ++l) {
    a.weights += ms::layer_weights_read(c, l, 0);
    a.keys_values += 2 * context * c.sizes.kv_groups() * c.sizes.head_size();
  }
  return a;
}
/// So many experts, wherever they are: all MoE layers have the same.
template <class V> amount of_experts(const ms::config<V>& c, double count) {
  for (int l = 0; l < c.sizes.layers; ++l)
    if (c.sizes.is_moe(l)) return {count * ms::layer_reads_of(c, l).expert, 0};
  return {};
}
template <class V> amount of_heads(const ms::config<V>& c, double count) {
  return {count * ms::head_weights_read(c.sizes), 0};
}
/// What is read for the keys and values of layers [first, L) that a token left out.
template <class V> amount of_missing(const ms::config<V>& c, int first) {
  return {(c.sizes.layers - first) * ms::kv_weights_read(c.sizes), 0};
}

/// A round of d drafts from exit e and their verification, but for experts.
template <class V> amount of_round(const ms::config<V>& c, int e, int d, double context) {
  return double(d + 1) * of_layers(c, 0, e, context) + of_layers(c, e, c.sizes.layers, context) + of_heads(c, d + 1);
}

/// A token of plain decoding.
template <class V> amount of_token(const ms::config<V>& c, double context) {
  const double experts = double(c.sizes.moe_layers()) * V::router::experts_per_token;
  return of_layers(c, 0, c.sizes.layers, context) + of_experts(c, experts) + of_heads(c, 1);
}

}  // namespace bench
