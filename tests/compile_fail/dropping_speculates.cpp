// expect: moeskip: V::router drops tokens over a capacity at inference, so that a token's result depends on the tokens beside it
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  using router = ms::router::biased<ms::router::dropping<ms::router::top_k<2>>>;
};
void generate(ms::model<mine, ms::reference<double>>& m) { ms::generate(m, std::vector<int>{1}, {}); }
