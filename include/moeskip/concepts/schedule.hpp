// How strongly a dropout policy acts: over the depth of the model, and over the time of a training run.
//   p(layer, progress) = p_max · depth.at(layer, layers) · time.at(progress)
// Progress is the share of the planned steps that are done, 0 at the first step; where nobody says, it is 1, the end.
#pragma once

#include <concepts>
#include <string_view>

namespace moeskip {

/// at(layer, layers) is in [0, 1], for layer = 0 … layers-1. Optional: problem(), what is wrong with its numbers, and
/// fits(layers), whether it can be asked about that many.
template <class S> concept DepthSchedule = std::equality_comparable<S> && requires(const S& s) {
  { S::name } -> std::convertible_to<std::string_view>;
  { s.at(int{}, int{}) } -> std::convertible_to<float>;
};

/// at(progress) is in [0, 1], for progress in [0, 1].
template <class S> concept TimeSchedule = std::equality_comparable<S> && requires(const S& s) {
  { S::name } -> std::convertible_to<std::string_view>;
  { s.at(double{}) } -> std::convertible_to<float>;
};

}  // namespace moeskip
