// expect: moeskip: the router of a model in a batch drops tokens over a capacity at inference
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct mine : ms::variant {
  using router = ms::router::dropping<ms::router::top_k<2>>;
};
struct plain : ms::variant {};
using small = ms::model<mine, ms::reference<double>>;
void together(ms::model<plain, ms::reference<double>>& m, small& drafts) {
  ms::batch_session<plain, ms::reference<double>> batch(m, 2);
  const ms::speculative_decoder::compose<ms::draft::small_model<small>> decoder{.draft = {&drafts}};
  batch.generate(std::vector<std::vector<int>>{{1}}, {}, decoder);
}
