// Dropout of experts' outputs: what expert e gave row n is left out with probability p, and else divided by 1 − p. The
// draw hangs on (seed, step, layer, token, expert) alone.
//   masked_n,k = value_n,k · factor(n, chosen_n,k)      of gates: the outputs' weights; of their gradient: the gates'
//   N rows   K choices of each
#pragma once

#include "moeskip/base/rng.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/rows.hpp"

namespace moeskip {

struct output_mask {
  float p = 0;  // in [0, 1); 0: nothing is masked, and the rest does not matter
  seed from{};
  std::uint64_t step = 0;
  int layer = 0;
  token_rows rows{};  // (N) of the call

  MOESKIP_HD bool masks() const { return p > 0; }
  /// 0 or 1 / (1 − p); 1 where there is no expert: e < 0.
  MOESKIP_HD double factor(index_t n, int e) const {
    if (e < 0) return 1;
    const draws draw{from, stream::expert_output};
    return draw.uniform(step, std::uint64_t(layer), rows.id(n), std::uint64_t(e)) < p ? 0 : 1 / (1 - double(p));
  }
};

/// masked (N, K) = …, from value and chosen (N, K); masked may be value. Throws shape_error.
struct mask_outputs_t {
  static constexpr const char* name = "mask_outputs";
  template <class B> void operator()(B& b, mat<scalar_t<B>> masked, mat<const scalar_t<B>> value, mat<const int> chosen,
                                     const output_mask& mask) const {
    expect_shape(name, "value", value, masked.rows(), masked.cols());
    expect_shape(name, "chosen", chosen, masked.rows(), masked.cols());
    expect_shape(name, "rows.position", mask.rows.position, masked.rows());
    expect_shape(name, "rows.slot", mask.rows.slot, masked.rows());
    run_kernel<mask_outputs_t>(b, masked, value, chosen, mask);
  }
};
inline constexpr mask_outputs_t mask_outputs{};

template <> struct kernel<mask_outputs_t, on_reference> {
  template <class B, class T>
  static void run(B&, mat<T> masked, mat<const T> value, mat<const int> chosen, const output_mask& mask) {
    rows(masked, value, chosen, mask, 0, masked.rows());
  }
  /// Rows [first, last).
  template <class T> static void rows(mat<T> masked, mat<const T> value, mat<const int> chosen, const output_mask& mask,
                                      index_t first, index_t last) {
    for (index_t n = first; n < last; ++n)
      for (index_t k = 0; k < masked.cols(); ++k)
        masked(n, k) = value(n, k) * T(real_t<T>(mask.factor(n, chosen(n, k))));
  }
};

}  // namespace moeskip
