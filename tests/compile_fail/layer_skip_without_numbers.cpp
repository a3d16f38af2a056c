// expect: moeskip: V::layer_skip with gates needs the numbers open, temperature, keep and pull
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  struct layer_skip {
    static constexpr std::string_view name = "mine";
    static constexpr bool has_gates = true;
    bool gates(int, int) const { return true; }
    friend constexpr bool operator==(const layer_skip&, const layer_skip&) = default;
  };
};
constexpr bool passed = ms::check_variant<mine>::passed;
