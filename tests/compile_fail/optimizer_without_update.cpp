// expect: moeskip: the optimizer needs `name`, `lr`, `==` and a nested `on<B>` with a constructor from the list
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct descent {
  static constexpr std::string_view name = "descent";
  double lr = 1e-3;
  template <class B> struct on {
    explicit on(const std::vector<ms::tensor_info>&) {}
    template <class F> void blocks(F&&) {}
  };
  friend constexpr bool operator==(const descent&, const descent&) = default;
};
constexpr auto size = sizeof(ms::trainer<ms::variant, ms::reference<double>, descent>);
