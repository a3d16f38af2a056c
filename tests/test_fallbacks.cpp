// The CPU backend falls back to the reference loops only where this list says so.
#include <doctest/doctest.h>

#include <string>

#include "tiny.hpp"

using namespace tests;

namespace {

template <class B, class... Ops> std::string fallbacks() {
  std::string names;
  ((ms::runs_on<Ops, B> ? void() : void(names += ms::text(names.empty() ? "" : " ", Ops::name))), ...);
  return names;
}

template <class B> std::string all_fallbacks() {
  return fallbacks<B, ms::embed_t, ms::embed_backward_t, ms::rms_norm_t, ms::rms_norm_backward_t, ms::linear_t,
                   ms::linear_backward_t, ms::rope_append_t, ms::rope_append_backward_t, ms::attend_t,
                   ms::attend_backward_t, ms::route_t, ms::route_backward_t, ms::balance_loss_t, ms::experts_t,
                   ms::experts_backward_t, ms::swiglu_t, ms::swiglu_backward_t, ms::cross_entropy_t, ms::gather_rows_t,
                   ms::scatter_rows_t, ms::accumulate_t, ms::sum_of_squares_t, ms::store_weights_t,
                   ms::adamw_update_t>();
}

}  // namespace

TEST_CASE("the ops that the CPU backend leaves to the reference") {
  const std::string permitted = "embed embed_backward balance_loss gather_rows scatter_rows";
  CHECK(all_fallbacks<ms::cpu<float>>() == permitted);
  CHECK(all_fallbacks<ms::cpu<ms::bf16>>() == permitted);
  CHECK(all_fallbacks<ms::reference<double>>().empty());
}
