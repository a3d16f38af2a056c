// Gradients of whole models against the complex-step derivative.
// ctest: arithmetic
#include <doctest/doctest.h>

#include "model_gradients.hpp"

using namespace tests;

namespace {

struct plain : ms::variant {};
struct everything : ms::variant {
  using expert_dropout = ms::expert_dropout::bernoulli;
  using layer_dropout = ms::layer_dropout::exponential;
  using exit_head = ms::exit_head::own;
};
struct own_heads : ms::variant {
  using exit_head = ms::exit_head::own;
};
struct corrected : ms::variant {
  using exit_head = ms::exit_head::low_rank;
};
struct switching : ms::variant {
  using router = ms::router::switch_top1;
  using layer_dropout = ms::layer_dropout::linear;
};

}  // namespace

TEST_CASE("gradients: top-2, renormalised, shared exits") {
  CHECK(worst_error<plain>({.sizes = tiny_sizes, .router = {.balance_loss = 0.3f, .z_loss = 0.2f}}) < 1e-9);
}

TEST_CASE("gradients: top-2 without renormalisation, tied unembedding") {
  ms::sizes s = tiny_sizes;
  s.tied = true;
  CHECK(worst_error<plain>({.sizes = s, .router = {.renormalise = false}}) < 1e-9);
}

TEST_CASE("gradients: softmax after the selection, every layer MoE") {
  ms::sizes s = tiny_sizes;
  s.moe_every = 1;
  CHECK(worst_error<plain>({.sizes = s, .router = {.order = ms::router::softmax_order::after_selection}}) < 1e-9);
}

TEST_CASE("gradients: expert dropout, layer dropout, own exits") {
  ms::sizes s = tiny_sizes;
  s.moe_every = 1;
  CHECK(worst_error<everything>({.sizes = s, .expert_dropout = {.p = 0.5f}, .layer_dropout = {.p_max = 0.6f}}) < 1e-9);
}

TEST_CASE("gradients: exits with a low-rank correction, tied and not") {
  ms::sizes s = tiny_sizes;
  CHECK(worst_error<corrected>({.sizes = s, .exit_head = {.rank = 3}}) < 1e-9);
  s.tied = true;
  CHECK(worst_error<corrected>({.sizes = s, .exit_head = {.rank = 1}}) < 1e-9);
}

// Complex steps see the teacher as a constant (ops/distillation.hpp), as the gradient does.
TEST_CASE("gradients: exits distilled from the full depth, shared, own and corrected heads") {
  CHECK(worst_error<plain>({.sizes = tiny_sizes}, {.distill = 0.6}) < 1e-9);
  CHECK(worst_error<everything>({.sizes = tiny_sizes, .layer_dropout = {.p_max = 0.6f}}, {.distill = 1}) < 1e-9);
  CHECK(worst_error<corrected>({.sizes = tiny_sizes, .exit_head = {.rank = 3}}, {.distill = 0.3}) < 1e-9);
}

TEST_CASE("gradients: switch routing with capacity and layer dropout") {
  CHECK(worst_error<switching>(
            {.sizes = tiny_sizes, .router = {.capacity_factor = 0.7f}, .layer_dropout = {.p_max = 0.4f}}) < 1e-9);
}

TEST_CASE("gradients: no MoE layer") {
  ms::sizes s = tiny_sizes;
  s.moe_every = 0;
  CHECK(worst_error<plain>({.sizes = s}) < 1e-9);
}

TEST_CASE("gradients: nothing but exits below the top learns, with heads of their own and with a shared one") {
  CHECK(worst_error<own_heads>({.sizes = tiny_sizes}, {}, 0) < 1e-9);
  CHECK(worst_error<own_heads>({.sizes = tiny_sizes}, {.distill = 0.4}, 0) < 1e-9);
  CHECK(worst_error<plain>({.sizes = tiny_sizes}, {}, 0) < 1e-9);
}
