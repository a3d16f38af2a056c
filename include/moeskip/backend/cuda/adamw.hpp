// AdamW: one phase. The cautious one needs to know how many weights agree with their gradients before it moves any: a
// phase that makes moments and counts, one that moves weights.
#pragma once

#include <cmath>

#include "moeskip/backend/cuda/elementwise.hpp"
#include "moeskip/ops/adamw.hpp"

namespace moeskip {

namespace phase {

/// What both phases know of a step.
struct adamw_tensor {
  vec<float> w, m, v;
  vec<const float> g;
  float beta1, beta2, gradient_scale, keep, rate, spread, epsilon;

  adamw_tensor(vec<float> weights, vec<float> first, vec<float> second, vec<const float> gradient, const adamw_step& s)
      : w(weights),
        m(first),
        v(second),
        g(gradient),
        beta1(float(s.beta1)),
        beta2(float(s.beta2)),
        gradient_scale(float(s.gradient_scale)),
        keep(float(1 - s.lr * s.decay)),
        rate(float(s.lr / s.correction1)),
        spread(float(1 / s.correction2)),
        epsilon(float(s.epsilon)) {}

  MOESKIP_HD void add_to_moments(float& first, float& second, float gradient) const {
    const float d = gradient * gradient_scale;
    first = beta1 * first + (1 - beta1) * d;
    second = beta2 * second + (1 - beta2) * d * d;
  }
  MOESKIP_HD float step(float first, float second) const {
    return rate * first / (std::sqrt(second * spread) + epsilon);
  }
  static MOESKIP_HD bool agree(float first, float gradient) {
    return (first > 0 && gradient > 0) || (first < 0 && gradient < 0);
  }
};

/// All of a quad of weights.
struct adamw {
  static constexpr const char* name = "adamw";
  adamw_tensor t;
  MOESKIP_HD void operator()(index_t q) const {
    const index_t i = q * quad, n = t.w.size();
    float w[quad], m[quad], v[quad], g[quad];
    load_pack(w, t.w.data(), i, n), load_pack(m, t.m.data(), i, n);
    load_pack(v, t.v.data(), i, n), load_pack(g, t.g.data(), i, n);
    for (int j = 0; j < quad; ++j) {
      t.add_to_moments(m[j], v[j], g[j]);
      w[j] = t.keep * w[j] - t.step(m[j], v[j]);
    }
    store_pack(t.w.data(), i, n, w), store_pack(t.m.data(), i, n, m), store_pack(t.v.data(), i, n, v);
  }
};

/// Moments, and how many of each block's agree with their gradients.
struct adamw_moments {
  static constexpr const char* name = "adamw_moments";
  static constexpr int barriers = 1;
  adamw_tensor t;
  vec<int> agreeing;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = t.w.size();
    int count = 0;
    for_quads(b, n, [&](index_t i) {
      float m[quad], v[quad], g[quad];
      load_pack(m, t.m.data(), i, n), load_pack(v, t.v.data(), i, n), load_pack(g, t.g.data(), i, n);
      for (int j = 0; j < quad; ++j) {
        t.add_to_moments(m[j], v[j], g[j]);
        count += adamw_tensor::agree(m[j], g[j]);
      }
      store_pack(t.m.data(), i, n, m), store_pack(t.v.data(), i, n, v);
    });
    const double sum = block_sum(b, double(count), 0, 0);
    if (b.thread() == 0) agreeing[b.block()] = int(sum);
  }
};

/// Weights. Every block adds up what all blocks have counted: the host need not wait for it.
struct adamw_weights {
  static constexpr const char* name = "adamw_weights";
  static constexpr int barriers = 1;
  adamw_tensor t;
  vec<const int> agreeing;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = t.w.size();
    double all = 0;
    for (index_t i = b.thread(); i < agreeing.size(); i += b.threads()) all += agreeing[i];
    const float boost = float(adamw_step::boost(index_t(block_sum(b, all, 0, 0)), n));
    for_quads(b, n, [&](index_t i) {
      float w[quad], m[quad], v[quad], g[quad];
      load_pack(w, t.w.data(), i, n), load_pack(m, t.m.data(), i, n);
      load_pack(v, t.v.data(), i, n), load_pack(g, t.g.data(), i, n);
      for (int j = 0; j < quad; ++j)
        w[j] = t.keep * w[j] - (adamw_tensor::agree(m[j], g[j]) ? boost * t.step(m[j], v[j]) : 0.f);
      store_pack(t.w.data(), i, n, w);
    });
  }
};

}  // namespace phase

template <> struct kernel<adamw_update_t, on_cuda> {
  template <class B>
  static void run(B&, vec<float> w, vec<float> m, vec<float> v, vec<const float> g, const adamw_step& s) {
    using call = detail::device_call<adamw_update_t, B>;
    const phase::adamw_tensor t(call::seen(w), call::seen(m), call::seen(v), call::seen(g), s);
    if (!s.cautious) return call::each(detail::ceiling(w.size(), phase::quad), phase::adamw{t});
    const auto scope = call::scratch().scope();
    const launch_shape shape = detail::blocks_over(w.size(), 64);
    const vec<int> agreeing = call::scratch().template take<int>(shape.blocks);
    call::launch(shape, phase::adamw_moments{t, agreeing});
    call::launch(shape, phase::adamw_weights{t, agreeing});
  }
};

}  // namespace moeskip
