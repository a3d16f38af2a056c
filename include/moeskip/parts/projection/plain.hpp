// Projection: what becomes of queries, keys and values between their product with the weights and the rotation by
// position. `plain`: nothing.
// A projection that describes this as `adjustment(sizes)` leaves inference to ops/append_attend.hpp, which may do it
// while it reads; its forward() then serves training and early exits, and must do the same. One that has only forward()
// is asked to do it.
#pragma once

#include <string_view>
#include <type_traits>

#include "moeskip/ops/qkv_adjustment.hpp"
#include "moeskip/parts/sizes.hpp"

namespace moeskip::projection {

struct plain {
  static constexpr std::string_view name = "plain";
  static constexpr bool keeps_input = false;  // whether backward asks for what stood there before
  static constexpr index_t active_weights(const sizes&) { return 0; }

  template <class W> struct weights {
    template <class Tensor> void tensors(const sizes&, Tensor&&) {}
    qkv_adjustment<std::remove_const_t<W>> adjustment(const sizes&) const { return {}; }
    template <class... Anything> void forward(Anything&&...) const {}
    template <class... Anything> void backward(Anything&&...) const {}
  };
};

}  // namespace moeskip::projection
