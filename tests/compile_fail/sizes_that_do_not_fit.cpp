// expect: sizes must fit together
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
constexpr ms::config<ms::variant> c{.sizes = {.layers = 2, .dim = 8, .heads = 3, .ffn = 8, .experts = 2, .vocab = 9}};
static_assert(ms::valid(c), "sizes must fit together");
