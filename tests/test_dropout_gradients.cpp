// Gradients of whole models under every dropout policy: what vanishes is drawn again in backward, for the same rows.
// ctest: arithmetic
#include "model_gradients.hpp"

using namespace tests;

namespace {

namespace depth = ms::depth;
namespace over_time = ms::over_time;
namespace experts = ms::expert_dropout;
namespace layers = ms::layer_dropout;
using ms::mask_scope;

template <class E, class L = layers::none> struct dropping : ms::variant {
  using router = ms::router::top_k<2>;
  using expert_dropout = E;
  using layer_dropout = L;
};

/// The error of a model whose layers are all MoE; auxiliary losses weigh enough to be seen.
template <class E, class L = layers::none> double error_with(E e, L l = {}, double progress = 1) {
  ms::sizes s = tiny_sizes;
  s.moe_every = 1, s.dim = 8, s.ffn = 6, s.experts = 4, s.vocab = 11, s.heads = 2, s.kv_heads = 1;
  return worst_error<dropping<E, L>>(
      {.sizes = s, .router = {.balance_loss = 0.3f, .z_loss = 0.2f}, .expert_dropout = e, .layer_dropout = l},
      {.progress = progress});
}

}  // namespace

TEST_CASE("gradients: experts vanish for a step, a sequence, a token") {
  for (const mask_scope scope : {mask_scope::step, mask_scope::sequence, mask_scope::token}) {
    CAPTURE(int(scope));
    CHECK(error_with(experts::bernoulli{.p = 0.5f, .scope = scope}) < 1e-9);
    CHECK(error_with(experts::cluster{.p = 0.5f, .size = 2, .scope = scope}) < 1e-9);
  }
}

TEST_CASE("gradients: outputs of experts are left out, and units inside them") {
  CHECK(error_with(experts::output{.p = 0.4f}) < 1e-9);
  CHECK(error_with(experts::hidden{.p = 0.4f}) < 1e-9);
  CHECK(error_with(experts::scheduled<experts::output, depth::linear>{.policy = {.p = 0.9f}},
                   layers::uniform{.p_max = 0.4f}) < 1e-9);
  CHECK(error_with(experts::scheduled<experts::hidden, depth::linear>{.policy = {.p = 0.9f}},
                   layers::uniform{.p_max = 0.4f}) < 1e-9);
}

TEST_CASE("gradients: scheduled expert dropout with layer dropout, both half way through training") {
  CHECK(error_with(
            experts::scheduled<experts::bernoulli, depth::linear, over_time::exponential>{
                .policy = {.p = 0.9f, .scope = mask_scope::token}},
            layers::by_depth<depth::exponential, over_time::linear>{.p_max = 0.9f}, 0.5) < 1e-9);
}

TEST_CASE("gradients: layer dropout, uniform and custom") {
  CHECK(error_with(experts::none{}, layers::uniform{.p_max = 0.5f}) < 1e-9);
  CHECK(error_with(experts::none{}, layers::custom<4>{.p_max = 0.9f, .depth = {{1, 0, 0.5f, 0.7f}}}) < 1e-9);
}
