// Optimizer: turns gradients into new weights. Its state lies in blocks laid out like the weights.
#pragma once

#include <concepts>
#include <string_view>

namespace moeskip {

/// on<B>(size) holds the state of `size` weights; update(…) works on one tensor's range; blocks(f) calls
/// f(name, block) for each block of state, so that checkpoints can save and load it.
template <class O, class B> concept Optimizer = std::equality_comparable<O> &&
    requires(typename O::template on<B>& state, const O& o) {
  { O::name } -> std::convertible_to<std::string_view>;
  { o.lr } -> std::convertible_to<double>;
  state.blocks([](std::string_view, auto&) {});
};

}  // namespace moeskip
