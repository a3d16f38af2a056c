// Curriculum: which exits take part in the loss of a training step. The full depth always does.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>

#include "moeskip/base/bit_set.hpp"

namespace moeskip {

/// What a curriculum may look at beside the exits.
struct training_moment {
  std::uint64_t step;       // from 0
  std::uint64_t steps = 1;  // planned, at least 1; step may run past it
  int layers = 0;           // of the model
};

/// enabled(exits, moment) is a subset of exits; checkpoints of a run remember the name.
template <class P> concept Curriculum = requires(const P& p, const layer_set& exits, const training_moment& now) {
  { P::name } -> std::convertible_to<std::string_view>;
  { p.enabled(exits, now) } -> std::same_as<layer_set>;
};

}  // namespace moeskip
