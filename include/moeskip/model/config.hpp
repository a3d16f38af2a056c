// A model's numbers: sizes, exits, and the hyper-parameters of the variant's policies.
#pragma once

#include "moeskip/model/variant.hpp"
#include "moeskip/parts/router/wrapper.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip {

template <class V> struct config {
  moeskip::sizes sizes{};
  /// After these numbers of layers; the full depth always is one. LayerSkip's formula gives the exit after layer 1 the
  /// weight 0 in the loss: unless training weighs it otherwise it does not learn, and early exit still asks it.
  layer_set exits{};
  typename V::router router{};
  typename V::expert_dropout expert_dropout{};
  typename V::layer_dropout layer_dropout{};
  typename V::exit_head exit_head{};
  typename V::layer_skip layer_skip{};

  /// Whether tokens may pass layer l by.
  constexpr bool has_gate(int l) const {
    if constexpr (V::layer_skip::has_gates) return layer_skip.gates(l, sizes.layers);
    else return false;
  }

  friend constexpr bool operator==(const config&, const config&) = default;
};

namespace detail {

/// A policy's own complaint about its numbers; empty where it has none.
template <class P> constexpr std::string_view policy_problem(const P& policy) {
  if constexpr (requires { policy.problem(); }) return policy.problem();
  else return {};
}

/// The same of a policy that complains about the number of layers.
template <class P> constexpr std::string_view policy_problem(const P& policy, int layers) {
  if constexpr (requires { policy.problem(layers); }) return policy.problem(layers);
  else return policy_problem(policy);
}

/// All weights of a model, roughly: for bounds only, hence in double.
constexpr double rough_weights(const sizes& s) {
  const double attention = 2.0 * (s.heads + s.kv_groups()) * s.head_size(), dense = 3.0 * s.dense_width();
  const double moe = s.experts * (2 + 3.0 * s.ffn) + 3.0 * s.shared_width();
  return s.dim * (s.layers * (attention + dense) + s.moe_layers() * moe + 2.0 * s.vocab);
}

}  // namespace detail

/// What is wrong with a config, in a sentence that names field and value; empty where it is sound.
template <class V> constexpr std::string_view problem(const config<V>& c) {
  const sizes& s = c.sizes;
  if (s.layers < 1 || s.layers >= layer_set::capacity) return "sizes.layers must be from 1 to 127";
  if (s.dim < 1) return "sizes.dim must be at least 1";
  if (s.heads < 1) return "sizes.heads must be at least 1";
  if (s.head_dim == 0 && s.dim % s.heads)
    return "sizes.dim must be a multiple of sizes.heads unless sizes.head_dim is given";
  if (s.head_size() % 2 || s.head_size() < 2) return "sizes.head_dim must be even: rotary positions turn pairs";
  if (s.kv_groups() < 1 || s.heads % s.kv_groups()) return "sizes.heads must be a multiple of sizes.kv_heads";
  if (s.vocab < 1) return "sizes.vocab must be at least 1";
  if (s.context < 1) return "sizes.context must be at least 1";
  if (s.rotary_dim < 0 || s.rotary_dim > s.head_size() || s.rotary_dim % 2)
    return "sizes.rotary_dim must be even, and at most sizes.head_dim";
  if (s.moe_every < 0) return "sizes.moe_every must be 0 (no MoE layer) or more";
  if (s.moe_from < 0 || s.moe_from > s.layers) return "sizes.moe_from must be from 0 to sizes.layers";
  if (s.moe_layers() > 0 && s.ffn < 1) return "sizes.ffn must be at least 1";
  if (s.moe_layers() < s.layers && s.dense_width() < 1) return "sizes.dense_ffn or sizes.ffn must be at least 1";
  if (s.moe_layers() > 0 && s.experts < V::router::experts_per_token)
    return "sizes.experts must be at least the router's experts_per_token";
  if (s.experts > expert_set::capacity) return "sizes.experts must be at most 512";
  constexpr int most = 1 << 24;
  for (const int extent :
       {s.dim, s.heads, s.kv_heads, s.head_dim, s.ffn, s.dense_ffn, s.shared_ffn, s.vocab, s.context})
    if (extent < 0 || extent > most) return "sizes: no extent may be negative or above 16,777,216";
  if (double(s.heads + 2 * s.kv_groups()) * s.head_size() > most || 2.0 * s.ffn > most)
    return "sizes: queries, keys and values together, and 2 * ffn, must be at most 16,777,216";
  if (detail::rough_weights(s) > 0x1p40) return "sizes: the model would have more than 2^40 weights";
  if (!(s.norm_eps > 0 && s.norm_eps < 1)) return "sizes.norm_eps must be between 0 and 1";
  if (!(s.rope_theta > 0 && s.rope_theta < 1e30f)) return "sizes.rope_theta must be positive and finite";
  if (!(s.attention_scale >= 0 && s.attention_scale < 1e30f)) return "sizes.attention_scale must be 0 or positive";
  if (!(s.stretch.factor >= 1 && s.stretch.factor < 1e6f && s.stretch.low > 0 && s.stretch.low < s.stretch.high &&
        s.stretch.high < 1e6f && s.stretch.original >= 1))
    return "sizes.stretch: expected factor >= 1, 0 < low < high and original >= 1";
  for (const std::string_view complaint :
       {router::problem_of(c.router, s.moe_layers() > 0 ? s.experts : 0), detail::policy_problem(c.expert_dropout),
        detail::policy_problem(c.layer_dropout), detail::policy_problem(c.exit_head),
        detail::policy_problem(c.layer_skip), detail::policy_problem(c.expert_dropout, s.layers),
        detail::policy_problem(c.layer_dropout, s.layers)})
    if (!complaint.empty()) return complaint;
  if constexpr (requires { c.exit_head.problem(s); })
    if (const std::string_view complaint = c.exit_head.problem(s); !complaint.empty()) return complaint;
  for (int e = 0; e < layer_set::capacity; ++e)
    if (c.exits.contains(e) && (e < 1 || e >= s.layers)) return "exits must lie from 1 to sizes.layers - 1";
  return {};
}

/// For static_assert(ms::valid(config)): sizes that do not fit together fail to compile.
template <class V> constexpr bool valid(const config<V>& c) { return problem(c).empty(); }

/// Calls f(slot, field, value) for every number of a config: how it is printed, saved and compared. Policies without
/// `fields` have none that could be saved: checkpoints refuse them unless they are as they are by default.
template <class C, class F> void visit_fields(C& c, F&& f) {
  const auto slot = [&](std::string_view name, auto& values) {
    if constexpr (requires { values.fields(values, [](std::string_view, auto&) {}); })
      values.fields(values, [&](std::string_view field, auto& value) { f(name, field, value); });
  };
  slot("sizes", c.sizes), slot("router", c.router), slot("expert_dropout", c.expert_dropout);
  slot("layer_dropout", c.layer_dropout), slot("exit_head", c.exit_head), slot("layer_skip", c.layer_skip);
}

/// Slots that files of earlier versions do not name: f(slot, name of V's policy, name of the default). Where it is the
/// default they are not named today either.
template <class V, class F> void visit_newer_slots(F&& f) {
  f("projection", V::projection::name, projection::plain::name);
  f("mlp", V::mlp::name, mlp::swiglu::name);
  f("after_moe", V::after_moe::name, after_moe::nothing::name);
  f("layer_skip", V::layer_skip::name, layer_skip::none::name);
}

/// "router=top_k<2> expert_dropout=none …": the policies of a variant by name.
template <class V> std::string variant_name() {
  std::string newer;
  visit_newer_slots<V>([&](std::string_view slot, std::string_view name, std::string_view usual) {
    if (name != usual) newer += text(" ", slot, "=", name);
  });
  return text("router=", router::full_name<typename V::router>(), " shared_expert=", V::shared_expert::name,
              " expert_dropout=", V::expert_dropout::name, " layer_dropout=", V::layer_dropout::name,
              " exit_head=", V::exit_head::name, newer);
}

}  // namespace moeskip
