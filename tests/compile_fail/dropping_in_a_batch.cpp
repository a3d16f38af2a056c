// expect: moeskip: the router of a model in a batch drops tokens over a capacity at inference
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  using router = ms::router::dropping<ms::router::top_k<2>>;
};
void together(ms::model<mine, ms::reference<double>>& m) { ms::batch_session<mine, ms::reference<double>> batch(m, 2); }
