// expect: moeskip: V::router needs `template <class T> MOESKIP_HD void backward(
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct my_router {
  static constexpr std::string_view name = "mine";
  static constexpr int experts_per_token = 2;
  template <class T> void score(const ms::routed_token<T>&) const {}
  template <class T> void choose(const ms::routed_token<T>&) const {}
  template <class T> void weigh(const ms::routed_token<T>&) const {}
  friend constexpr bool operator==(const my_router&, const my_router&) = default;
};
struct mine : ms::variant {
  using router = my_router;
};
constexpr bool passed = ms::check_variant<mine>::passed;
