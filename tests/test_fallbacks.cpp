// The CPU backend falls back to the reference loops only where this list says so.
#include <doctest/doctest.h>

#include <string>

#include "tiny.hpp"

using namespace tests;

TEST_CASE("the ops that the CPU backend leaves to the reference") {
  const std::string permitted = "embed embed_backward balance_loss gather_rows scatter_rows";
  CHECK(ms::fallbacks<ms::cpu<float>>() == permitted);
  CHECK(ms::fallbacks<ms::cpu<ms::bf16>>() == permitted);
  CHECK(ms::fallbacks<ms::reference<double>>().empty());
}
