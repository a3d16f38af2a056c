// expect: moeskip: V::exit_head's weights<W> need `template <class Tensor> void tensors(const P& policy, const sizes&
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  struct exit_head {
    static constexpr std::string_view name = "mine";
    template <class W> struct weights {
      bool has(int) const { return true; }
      ms::head_weights<W> at(int, const ms::head_weights<W>& top) const { return top; }
    };
    friend constexpr bool operator==(const exit_head&, const exit_head&) = default;
  };
};
constexpr bool passed = ms::check_variant<mine>::passed;
