// expect: moeskip: V::router drops tokens over a capacity at inference, so that a sequence's tokens would depend on the
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  using router = ms::router::dropping<ms::router::top_k<2>>;
};
void together(ms::model<mine, ms::reference<double>>& m) { ms::batch_session<mine, ms::reference<double>> batch(m, 2); }
