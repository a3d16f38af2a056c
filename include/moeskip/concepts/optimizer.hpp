// Optimizer: turns gradients into new weights.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>
#include <vector>

#include "moeskip/concepts/backend.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct tensor_info;  // model/weights.hpp

/// on<B>(tensors) holds the state of a model's weights. update(backend, optimizer, tensor, w, g, rate, t,
/// gradient_scale) updates one tensor from its gradient g times gradient_scale; t counts updates from 1. blocks(f)
/// calls f(name, tensors, block) for each block of state and the tensors that lie in it, so that checkpoints can save
/// and load it. A state may have together(optimizer, a, b), of tensors that follow each other: whether update() may get
/// both in one call, as a tensor without a shape, because what it does to a number depends on that number alone. It says
/// so by naming itself, `using takes_together = on`, so that what derives from it does not inherit the promise.
template <class O, class B> concept Optimizer =
    std::equality_comparable<O> && std::constructible_from < typename O::template on<B>,
const std::vector<tensor_info>& >
    &&std::movable<typename O::template on<B>>&& requires(typename O::template on<B>& state, const O& o, B& backend,
                                                          const tensor_info& tensor, vec<scalar_t<B>> w,
                                                          vec<const scalar_t<B>> g) {
  { O::name } -> std::convertible_to<std::string_view>;
  { o.lr } -> std::convertible_to<double>;
  state.update(backend, o, tensor, w, g, double{}, std::uint64_t{}, double{});
  state.blocks([](std::string_view, const auto&, auto&) {});
};

template <class State> concept TakesTogether = std::same_as<typename State::takes_together, State>;

}  // namespace moeskip
