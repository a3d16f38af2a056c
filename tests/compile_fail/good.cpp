// expect-ok
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct skips : ms::variant {
  using router = ms::router::switch_top1;
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using exit_head = ms::exit_head::own;
};
constexpr ms::config<skips> c{.sizes = {.layers = 2, .dim = 8, .heads = 2, .ffn = 8, .experts = 2, .vocab = 9}};
static_assert(ms::valid(c));
static_assert(ms::Variant<skips>);
ms::model<skips, ms::cpu<ms::bf16>> m{c, ms::seed{1}};
