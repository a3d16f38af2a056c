// Leave when a tiny trained head expects the exit to say what the full depth would say:
//   σ(w_e · x / rms(x) + b_e) >= threshold,   x (D) the residual stream after exit layer e
// The cheap test: D products instead of the V · D of an unembedding, which runs only where a token leaves. Train one
// with ms::fit_probe (eval/fit_probe.hpp).             as BERxiT's learning-to-exit module (Xin et al., EACL 2021)
#pragma once

#include <vector>

#include "moeskip/decode/exit_rule/threshold.hpp"

namespace moeskip::exit_rule {

struct probe {
  static constexpr std::string_view name = "probe";
  static constexpr bool reads_logits = false, reads_streams = false;
  using state = no_state;
  float threshold = 0.9f;
  int dim = 0;                   // D
  std::vector<float> weights{};  // (L, D + 1) of the exits after layers 0 … L−1, each with its bias last

  void check(layer_set, int layers) const {
    check_threshold(name, threshold);
    MOESKIP_CHECK(config_error, dim > 0 && weights.size() == std::size_t(layers) * std::size_t(dim + 1), name,
                  ".weights: expected ", layers, " x ", dim + 1,
                  " numbers, as ms::fit_probe makes them for a model of ", layers, " layers, got ", weights.size());
  }

  /// Throws config_error for a stream of another width.
  template <class T> double confidence(const exit_evidence<T>& seen) const {
    MOESKIP_CHECK(config_error, seen.stream.size() == dim, name, ".dim: expected ", seen.stream.size(),
                  ", the model's, got ", dim);
    const std::size_t at = std::size_t(seen.exit_layer) * std::size_t(dim + 1);
    if (at >= weights.size()) return 1;  // the full depth agrees with itself
    return 1 / (1 + std::exp(-score(seen.stream, &weights[at])));
  }
  template <class T> bool leaves(const exit_evidence<T>& seen, state&) const {
    return confidence(seen) >= double(threshold);
  }

  /// w · x / rms(x) + b, w (D) and then b.
  template <class T> static double score(vec<const T> x, const float* w) {
    double product = 0, square = 1e-12;
    for (index_t i = 0; i < x.size(); ++i)
      product += double(w[i]) * double(x[i]), square += double(x[i]) * double(x[i]);
    return product / std::sqrt(square / double(x.size())) + double(w[x.size()]);
  }
};

}  // namespace moeskip::exit_rule
