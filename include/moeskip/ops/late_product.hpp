// A product that its maker leaves to whoever comes next, so that a backend may make it and what follows in one go.
//   y = base + x wᵀ         x (N, I)   w (O, I)   base, y (N, O)
#pragma once

#include "moeskip/ops/linear.hpp"

namespace moeskip {

template <class T, class W> struct late_product {
  mat<T> y;
  mat<const T> base{}, x{};
  mat<const W> w{};  // empty: y stands already
  bool due() const { return w.data() != nullptr; }
};

/// Makes y, where it is due.
template <class B> void make_due(B& b, const late_product<scalar_t<B>, weight_t<B>>& p) {
  if (p.due()) linear(b, p.y, p.x, p.w, p.base);
}

}  // namespace moeskip
