// expect: moeskip: an exit rule needs `name`, `reads_logits`, `reads_streams`, `state`
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct my_rule {
  static constexpr std::string_view name = "mine";
  template <class T> bool leaves(ms::vec<const T>, int) const { return true; }
};
const ms::decoder::early_exit<my_rule> decoder{};
