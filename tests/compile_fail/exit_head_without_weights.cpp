// expect: moeskip: V::exit_head needs a nested `template <class W> struct weights`
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  struct exit_head {
    static constexpr std::string_view name = "mine";
    friend constexpr bool operator==(const exit_head&, const exit_head&) = default;
  };
};
constexpr bool passed = ms::check_variant<mine>::passed;
