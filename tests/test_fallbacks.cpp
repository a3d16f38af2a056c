// The CPU backend falls back to the reference loops only where this list says so.
#include <doctest/doctest.h>

#include <string>

#include "tiny.hpp"

// A backend that fuses the backward of norm_linear, and leaves all else to plain loops.
namespace fusing {
struct family {
  using fallback = moeskip::on_reference;
};
struct backend : moeskip::reference<double> {
  using family = fusing::family;
};
int calls = 0;
}  // namespace fusing
template <> struct moeskip::kernel<moeskip::norm_linear_backward_t, fusing::family> {
  template <class... Arguments> static void run(Arguments&&...) { ++fusing::calls; }
};

using namespace tests;

TEST_CASE("the ops that the CPU backend leaves to the reference") {
  const std::string permitted = "embed embed_backward add_load_errors gather_rows scatter_rows note_none open_gates";
  CHECK(ms::fallbacks<ms::cpu<float>>() == permitted);
  CHECK(ms::fallbacks<ms::cpu<ms::bf16>>() == permitted);
  CHECK(ms::fallbacks<ms::reference<double>>().empty());
}

TEST_CASE("a stage that is made of other ops is no fallback; a backend may have a kernel for it") {
  const std::string left = " " + ms::fallbacks<fusing::backend>() + " ";
  CHECK(left.find(" linear_backward ") != std::string::npos);
  CHECK(left.find(" norm_linear ") == std::string::npos);
  CHECK(left.find(" norm_linear_backward ") == std::string::npos);
  CHECK(ms::runs_on<ms::norm_linear_backward_t, fusing::backend>);
  CHECK_FALSE(ms::has_kernel<ms::norm_linear_backward_t, ms::cpu<float>>);
  fusing::backend b;
  ms::norm_linear_backward(b, {}, {}, {}, {}, {}, {}, {}, {}, {}, 0.1f);
  CHECK(fusing::calls == 1);
}
