// A variant names the policies of a model. check_variant turns a wrong one into one sentence per mistake: compilers
// explain a failed concept only where a static_assert's condition is exactly one concept.
#pragma once

#include "moeskip/concepts/exit_head.hpp"
#include "moeskip/concepts/expert_dropout.hpp"
#include "moeskip/concepts/layer_dropout.hpp"
#include "moeskip/concepts/layer_skip.hpp"
#include "moeskip/concepts/router.hpp"

namespace moeskip {

template <class V> concept Variant = Router<typename V::router> && ExpertDropout<typename V::expert_dropout> &&
    LayerDropout<typename V::layer_dropout> && LayerSkip<typename V::layer_skip> && ExitHead<typename V::exit_head>;

template <class V> struct check_variant {
  using router = typename V::router;
  static_assert(detail::names_itself<router>,
                "moeskip: V::router needs `static constexpr std::string_view name`: it is how checkpoints and "
                "describe() call it. See moeskip/concepts/router.hpp");
  static_assert(detail::has_experts_per_token<router>,
                "moeskip: V::router needs `static constexpr int experts_per_token = K;`: how many experts one token "
                "visits. See moeskip/concepts/router.hpp");
  static_assert(detail::comparable<router>,
                "moeskip: V::router needs `friend bool operator==(const R&, const R&) = default;`: policies are "
                "values that checkpoints compare. See moeskip/concepts/router.hpp");
  static_assert(detail::scores<router>,
                "moeskip: V::router needs `template <class T> MOESKIP_HD void score(const routed_token<T>& t) const` "
                "that fills t.probability. See moeskip/concepts/router.hpp");
  static_assert(detail::chooses<router>,
                "moeskip: V::router needs `template <class T> MOESKIP_HD void choose(const routed_token<T>& t) const` "
                "that fills t.chosen. See moeskip/concepts/router.hpp");
  static_assert(detail::weighs<router>,
                "moeskip: V::router needs `template <class T> MOESKIP_HD void weigh(const routed_token<T>& t) const` "
                "that fills t.gate. See moeskip/concepts/router.hpp");
  static_assert(detail::routes_backward<router>,
                "moeskip: V::router needs `template <class T> MOESKIP_HD void backward(const routed_token<T>& t, const "
                "T* dgate, T* dprobability, T* dlogits) const` that adds to dlogits. See moeskip/concepts/router.hpp");
  static_assert(detail::names_itself<typename V::expert_dropout> && detail::comparable<typename V::expert_dropout>,
                "moeskip: V::expert_dropout needs `static constexpr std::string_view name` and a defaulted operator==. "
                "See moeskip/concepts/expert_dropout.hpp");
  static_assert(
      detail::tells_survivors<typename V::expert_dropout>,
      "moeskip: V::expert_dropout needs `expert_set survivors(const mask_key& key, int experts, int at_least) "
      "const`. See moeskip/concepts/expert_dropout.hpp");
  static_assert(
      detail::names_itself<typename V::layer_dropout> && detail::comparable<typename V::layer_dropout>,
      "moeskip: V::layer_dropout needs `static constexpr std::string_view name` and a defaulted operator==. See "
      "moeskip/concepts/layer_dropout.hpp");
  static_assert(detail::tells_probability<typename V::layer_dropout>,
                "moeskip: V::layer_dropout needs `float probability(int layer, int layers, double progress) const`. "
                "See moeskip/concepts/layer_dropout.hpp");
  static_assert(detail::names_itself<typename V::layer_skip> && detail::comparable<typename V::layer_skip>,
                "moeskip: V::layer_skip needs `static constexpr std::string_view name` and a defaulted operator==. See "
                "moeskip/concepts/layer_skip.hpp");
  static_assert(
      detail::tells_gates<typename V::layer_skip>,
      "moeskip: V::layer_skip needs `static constexpr bool has_gates` and, with gates, `bool gates(int layer, "
      "int layers) const`. See moeskip/concepts/layer_skip.hpp");
  static_assert(detail::tells_gate_numbers<typename V::layer_skip>,
                "moeskip: V::layer_skip with gates needs the numbers open, temperature, keep and pull. See "
                "moeskip/concepts/layer_skip.hpp");
  static_assert(detail::has_head_weights<typename V::exit_head>,
                "moeskip: V::exit_head needs a nested `template <class W> struct weights`: what the exits own. See "
                "moeskip/concepts/exit_head.hpp");
  static_assert(detail::names_itself<typename V::exit_head> && detail::comparable<typename V::exit_head>,
                "moeskip: V::exit_head needs `static constexpr std::string_view name` and a defaulted operator==. See "
                "moeskip/concepts/exit_head.hpp");
  static_assert(
      detail::lists_tensors<typename V::exit_head>,
      "moeskip: V::exit_head's weights<W> need `template <class Tensor> void tensors(const P& policy, const sizes& "
      "s, const layer_set& exits, Tensor&& tensor)` that lists what the exits own. See moeskip/concepts/exit_head.hpp");
  static_assert(detail::finds_head<typename V::exit_head>,
                "moeskip: V::exit_head's weights<W> need `bool has(int exit_layer) const` and `head_weights<W> at(int "
                "exit_layer, const head_weights<W>& top) const`. See moeskip/concepts/exit_head.hpp");
  static constexpr bool passed = Variant<V>;
};

}  // namespace moeskip
