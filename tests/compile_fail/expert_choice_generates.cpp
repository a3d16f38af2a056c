// expect: moeskip: with router::expert_choice a token's experts depend on the tokens after it
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  using router = ms::router::expert_choice<4>;
};
void generate(ms::model<mine, ms::reference<double>>& m) { ms::generate(m, std::vector<int>{1}, {}); }
