// expect: moeskip: V::expert_dropout needs `expert_set survivors(
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  struct expert_dropout {
    static constexpr std::string_view name = "mine";
    friend constexpr bool operator==(const expert_dropout&, const expert_dropout&) = default;
  };
};
constexpr bool passed = ms::check_variant<mine>::passed;
