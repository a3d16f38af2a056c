// AdamW: Loshchilov and Hutter 2019, arXiv:1711.05101, with decoupled weight decay.
// Cautious (Liang et al. 2024, arXiv:2411.16085): where m and g disagree in sign, the weight waits (but decays); the
// other weights' updates are multiplied by 1 / (share of them in the tensor).
//   m = β₁ m + (1−β₁) g    v = β₂ v + (1−β₂) g²    w -= lr ( m̂ / (√v̂ + ε) + λ w )    m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)
#pragma once

#include <cmath>

#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

struct adamw_step {
  double lr, beta1, beta2, epsilon, decay;
  double correction1, correction2;  // 1 − β₁ᵗ, 1 − β₂ᵗ
  double gradient_scale;            // multiplies g first: clipping and averaging
  bool cautious = false;

  /// By what the updates of `agreeing` of `size` weights are multiplied; at most 1000.
  static MOESKIP_HD double boost(index_t agreeing, index_t size) {
    const double share = double(agreeing) / double(size > 0 ? size : 1);
    return 1 / (share > 1e-3 ? share : 1e-3);
  }
};

/// All of w, m, v, g have the same length; g is read, w, m and v are updated in place.
struct adamw_update_t {
  static constexpr const char* name = "adamw_update";
  template <class B> void operator()(B& b, vec<scalar_t<B>> w, vec<scalar_t<B>> m, vec<scalar_t<B>> v,
                                     vec<const scalar_t<B>> g, const adamw_step& step) const {
    expect_shape(name, "m", m, w.size());
    expect_shape(name, "v", v, w.size());
    expect_shape(name, "g", g, w.size());
    run_kernel<adamw_update_t>(b, w, m, v, g, step);
  }
};
inline constexpr adamw_update_t adamw_update{};

template <> struct kernel<adamw_update_t, on_reference> {
  template <class B, class T>
  static void run(B&, vec<T> w, vec<T> m, vec<T> v, vec<const T> gradient, const adamw_step& s) {
    using std::sqrt;
    using R = real_t<T>;
    const R beta1 = R(s.beta1), beta2 = R(s.beta2), keep = R(1 - s.lr * s.decay);
    const R rate = R(s.lr / s.correction1), spread = R(1 / s.correction2), epsilon = R(s.epsilon);
    index_t agreeing = 0;
    const auto agrees = [&](index_t i) {
      const R a = real_part(m[i]), b = real_part(gradient[i]);
      return (a > 0 && b > 0) || (a < 0 && b < 0);
    };
    for (index_t i = 0; i < w.size(); ++i) {
      const T g = gradient[i] * R(s.gradient_scale);
      m[i] = beta1 * m[i] + (1 - beta1) * g;
      v[i] = beta2 * v[i] + (1 - beta2) * g * g;
      agreeing += agrees(i);
    }
    const R boost = s.cautious ? R(s.boost(agreeing, w.size())) : R(1);
    for (index_t i = 0; i < w.size(); ++i) {
      const T step = rate * m[i] / (sqrt(v[i] * spread) + epsilon);
      w[i] = keep * w[i] - (s.cautious ? agrees(i) ? T(boost * step) : T{} : step);
    }
  }
};

}  // namespace moeskip
