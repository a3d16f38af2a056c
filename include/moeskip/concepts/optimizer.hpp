// Optimizer: turns gradients into new weights. Its state lies in blocks laid out like the weights.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>

#include "moeskip/concepts/backend.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// on<B>(size) holds the state of `size` weights. update(backend, optimizer, w, g, offset, rate, t, gradient_scale,
/// decays) updates one tensor, which stands at `offset` in the block, from its gradient g times gradient_scale; t counts
/// updates from 1. blocks(f) calls f(name, block) for each block of state, so that checkpoints can save and load it.
template <class O, class B> concept Optimizer = std::equality_comparable<O> &&
    std::constructible_from<typename O::template on<B>, index_t> && std::movable<typename O::template on<B>> &&
    requires(typename O::template on<B>& state, const O& o, B& backend, vec<scalar_t<B>> w, vec<const scalar_t<B>> g) {
  { O::name } -> std::convertible_to<std::string_view>;
  { o.lr } -> std::convertible_to<double>;
  state.update(backend, o, w, g, index_t{}, double{}, std::uint64_t{}, double{}, bool{});
  state.blocks([](std::string_view, auto&) {});
};

}  // namespace moeskip
