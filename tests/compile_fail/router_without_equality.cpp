// expect: moeskip: V::router needs `friend bool operator==
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct my_router {
  static constexpr std::string_view name = "mine";
  static constexpr int experts_per_token = 2;
  template <class T> void score(const ms::routed_token<T>&) const {}
  template <class T> void choose(const ms::routed_token<T>&) const {}
  template <class T> void weigh(const ms::routed_token<T>&) const {}
  template <class T> void backward(const ms::routed_token<T>&, const T*, T*, T*) const {}
};
struct mine : ms::variant {
  using router = my_router;
};
constexpr bool passed = ms::check_variant<mine>::passed;
