// Mlp: what dense blocks and experts compute between their matrices. `swiglu`: down (silu(gate h) · up h).
#pragma once

#include <string_view>

namespace moeskip::mlp {

struct swiglu {
  static constexpr std::string_view name = "swiglu";
  static constexpr int gates = 1;       // matrices of the hidden width that gate `up`
  static constexpr bool trains = true;  // whether there is a backward
};

}  // namespace moeskip::mlp
