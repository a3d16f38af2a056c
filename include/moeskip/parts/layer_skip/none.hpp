// Every token runs every layer.
#pragma once

#include <string_view>

namespace moeskip::layer_skip {

struct none {
  static constexpr std::string_view name = "none";
  static constexpr bool has_gates = false;
  friend constexpr bool operator==(const none&, const none&) = default;
};

}  // namespace moeskip::layer_skip
