// Curriculum: which exits take part in the loss of a training step. The full depth always does.
#pragma once

#include <concepts>
#include <cstdint>

#include "moeskip/base/bit_set.hpp"

namespace moeskip {

/// enabled(exits, step) is a subset of exits.
template <class P> concept Curriculum = requires(const P& p, const layer_set& exits, std::uint64_t step) {
  { p.enabled(exits, step) } -> std::same_as<layer_set>;
};

}  // namespace moeskip
