// Curriculum: which exits take part in the loss of a training step. The full depth always does.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>

#include "moeskip/base/bit_set.hpp"

namespace moeskip {

/// enabled(exits, step) is a subset of exits; checkpoints of a run remember the name.
template <class P> concept Curriculum = requires(const P& p, const layer_set& exits, std::uint64_t step) {
  { P::name } -> std::convertible_to<std::string_view>;
  { p.enabled(exits, step) } -> std::same_as<layer_set>;
};

}  // namespace moeskip
