// AdamW. The cautious one needs to know how many weights agree with their gradients before it moves any.
#pragma once

#include <algorithm>
#include <cmath>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/ops/adamw.hpp"

namespace moeskip {

namespace phase {

struct adamw_moments {
  static constexpr const char* name = "adamw_moments";
  vec<float> m, v;
  vec<const float> g;
  float beta1, beta2, gradient_scale;
  MOESKIP_HD void operator()(index_t i) const {
    const float d = g[i] * gradient_scale;
    m[i] = beta1 * m[i] + (1 - beta1) * d;
    v[i] = beta2 * v[i] + (1 - beta2) * d * d;
  }
};

MOESKIP_HD inline bool agree(float m, float g) { return (m > 0 && g > 0) || (m < 0 && g < 0); }

/// How many of every counts.size()-th weight.
struct count_agreeing {
  static constexpr const char* name = "count_agreeing";
  vec<int> counts;
  vec<const float> m, g;
  MOESKIP_HD void operator()(index_t part) const {
    int count = 0;
    for (index_t i = part; i < m.size(); i += counts.size()) count += agree(m[i], g[i]);
    counts[part] = count;
  }
};

struct adamw_weights {
  static constexpr const char* name = "adamw_weights";
  vec<float> w;
  vec<const float> m, v, g;
  float keep, rate, spread, epsilon, boost;
  bool cautious;
  MOESKIP_HD void operator()(index_t i) const {
    const float step = rate * m[i] / (std::sqrt(v[i] * spread) + epsilon);
    w[i] = keep * w[i] - (cautious ? agree(m[i], g[i]) ? boost * step : 0.f : step);
  }
};

}  // namespace phase

template <> struct kernel<adamw_update_t, on_cuda> {
  static constexpr index_t parts = 4096;
  template <class B>
  static void run(B&, vec<float> w, vec<float> m, vec<float> v, vec<const float> g, const adamw_step& s) {
    using call = detail::device_call<adamw_update_t, B>;
    call::seen(w), call::seen(m), call::seen(v), call::seen(g);
    const auto scope = call::scratch().scope();
    call::each(w.size(), phase::adamw_moments{m, v, g, float(s.beta1), float(s.beta2), float(s.gradient_scale)});
    double boost = 1;
    if (s.cautious) {
      const vec<int> counts = call::scratch().template take<int>(std::min(parts, w.size()));
      call::each(counts.size(), phase::count_agreeing{counts, m, g});
      call::settle();
      index_t agreeing = 0;
      for (const int count : counts) agreeing += count;
      boost = s.boost(agreeing, w.size());
    }
    call::each(w.size(), phase::adamw_weights{w, m, v, g, float(1 - s.lr * s.decay), float(s.lr / s.correction1),
                                              float(1 / s.correction2), float(s.epsilon), float(boost), s.cautious});
  }
};

}  // namespace moeskip
