// Optimizer: turns gradients into new weights.
#pragma once

#include <concepts>
#include <string_view>

namespace moeskip {

/// on<B>(tensors) holds the state of a model's weights; update(…) works on one tensor; blocks(f) calls
/// f(name, tensors, block) for each block of state and the tensors that lie in it, so that checkpoints can save and load
/// it.
template <class O, class B> concept Optimizer = std::equality_comparable<O> &&
    requires(typename O::template on<B>& state, const O& o) {
  { O::name } -> std::convertible_to<std::string_view>;
  { o.lr } -> std::convertible_to<double>;
  state.blocks([](std::string_view, const auto&, auto&) {});
};

}  // namespace moeskip
