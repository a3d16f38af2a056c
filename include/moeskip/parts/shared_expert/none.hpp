// No shared expert.
#pragma once

#include <string_view>

#include "moeskip/parts/sizes.hpp"

namespace moeskip::shared_expert {

struct none {
  static constexpr std::string_view name = "none";
  static constexpr index_t active_weights(const sizes&) { return 0; }
  static constexpr index_t kept_activations(const sizes&) { return 0; }

  template <class W> struct weights {
    template <class Tensor> void tensors(const sizes&, Tensor&&) {}
    template <class... Anything> void forward(Anything&&...) const {}
    template <class... Anything> bool backward(Anything&&...) const { return false; }
  };
};

}  // namespace moeskip::shared_expert
