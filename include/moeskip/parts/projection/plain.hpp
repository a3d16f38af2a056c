// Projection: what becomes of queries, keys and values between their product with the weights and the rotation by
// position. `plain`: nothing.
#pragma once

#include <string_view>

#include "moeskip/parts/sizes.hpp"

namespace moeskip::projection {

struct plain {
  static constexpr std::string_view name = "plain";
  static constexpr bool keeps_input = false;  // whether backward asks for what stood there before
  static constexpr index_t active_weights(const sizes&) { return 0; }

  template <class W> struct weights {
    template <class Tensor> void tensors(const sizes&, Tensor&&) {}
    template <class... Anything> void forward(Anything&&...) const {}
    template <class... Anything> void backward(Anything&&...) const {}
  };
};

}  // namespace moeskip::projection
