// Gradients of whole models against the complex-step derivative: every router, wrappers, and shared experts, with
// expert dropout by the token and layer dropout.
// ctest: arithmetic
#include <doctest/doctest.h>

#include "model_gradients.hpp"

using namespace tests;
using namespace ms::router;
namespace shared = ms::shared_expert;

namespace {

template <class R, class S> struct routing : ms::variant {
  using router = R;
  using shared_expert = S;
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::linear;
};

template <class S = shared::none, class R> double error_with(const R& router) {
  ms::sizes s = tiny_sizes;
  s.moe_every = 1, s.dim = 8, s.ffn = 6, s.shared_ffn = 4, s.experts = 6, s.vocab = 11, s.heads = 2, s.kv_heads = 1;
  return worst_error<routing<R, S>>({.sizes = s,
                                     .router = router,
                                     .expert_dropout = {.p = 0.3f, .scope = ms::mask_scope::token},
                                     .layer_dropout = {.p_max = 0.4f}});
}

}  // namespace

TEST_CASE("model gradients: sigmoid scores, groups, selection bias, shared expert with a gate") {
  const sigmoid_top_k<2> grouped{.groups = 3, .best_groups = 2, .scale = 2, .balance_loss = 0.3f, .z_loss = 0.2f};
  CHECK(error_with<shared::gated>(biased<sigmoid_top_k<2>>{.base = grouped}) < 1e-9);
}
TEST_CASE("model gradients: softmax scores, groups, scaled gates") {
  CHECK(error_with<shared::always>(grouped_top_k<2>{
            .groups = 3, .best_groups = 2, .scale = 2.5f, .balance_loss = 0.3f, .z_loss = 0.2f}) < 1e-9);
}
TEST_CASE("model gradients: noisy top-k, shared expert") {
  CHECK(error_with<shared::always>(noisy_top_k<2>{.balance_loss = 0.3f, .z_loss = 0.2f}) < 1e-9);
}
TEST_CASE("model gradients: hash routing") { CHECK(error_with<shared::gated>(hash<2>{}) < 1e-9); }
TEST_CASE("model gradients: experts choose") {
  CHECK(error_with(expert_choice<3>{.per_token = 1.5f, .z_loss = 0.2f}) < 1e-9);
}
TEST_CASE("model gradients: segments, with and without a free expert") {
  CHECK(error_with(segment<top_k<2>, 3>{.base = {.balance_loss = 0.3f, .z_loss = 0.2f}}) < 1e-9);
  CHECK(error_with(segment<top_k<3>, 2, 1>{.base = {.renormalise = false}, .from_layer = 1}) < 1e-9);
}
TEST_CASE("model gradients: segments of groups") {
  CHECK(error_with(segment_group<top_k<2>, 3, 3>{.base = {.balance_loss = 0.3f, .z_loss = 0.2f}, .from_layer = 1}) <
        1e-9);
}
TEST_CASE("model gradients: experts of limited capacity") {
  const dropping<top_k<2>> limited{
      .base = {.balance_loss = 0.3f, .z_loss = 0.2f}, .train_factor = 0.3f, .inference_factor = 100.f, .least = 1};
  CHECK(error_with<shared::always>(limited) < 1e-9);
}
TEST_CASE("model gradients: sticky and smooth") {
  CHECK(error_with(smooth<sticky<top_k<2>>>{.base = {.bonus = 0.2f}, .change_loss = 0.7f}) < 1e-9);
}
