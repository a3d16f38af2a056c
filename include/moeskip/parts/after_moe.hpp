// AfterMoe: what a MoE layer has behind its experts. `nothing`; or `dense`, one more dense block with a norm of its
// own, which every token passes: OpenMoE's "extra MLP".                                               arXiv:2402.01739
#pragma once

#include <string_view>

namespace moeskip::after_moe {

struct nothing {
  static constexpr std::string_view name = "nothing";
  static constexpr bool has_dense = false;
};

struct dense {
  static constexpr std::string_view name = "dense";
  static constexpr bool has_dense = true;
};

}  // namespace moeskip::after_moe
