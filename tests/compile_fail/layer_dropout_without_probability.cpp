// expect: moeskip: V::layer_dropout needs `float probability(int layer, int layers, double progress) const`
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  struct layer_dropout {
    static constexpr std::string_view name = "mine";
    friend constexpr bool operator==(const layer_dropout&, const layer_dropout&) = default;
  };
};
constexpr bool passed = ms::check_variant<mine>::passed;
