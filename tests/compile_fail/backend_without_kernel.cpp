// expect: moeskip: this backend has no kernel for the op
#include "moeskip/moeskip.hpp"
namespace ms = moeskip;
struct bare {  // a backend that falls back to nothing
  using scalar = float;
  using weight = float;
  struct family {};
};
void run(bare& b, ms::mat<float> y, ms::mat<const float> x) { ms::linear(b, y, x, x); }
