// Elementwise work on the CPU: SwiGLU, AdamW, and operations on long vectors.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>

#include "moeskip/backend/cpu/rowwise.hpp"
#include "moeskip/base/parallel.hpp"
#include "moeskip/ops/adamw.hpp"
#include "moeskip/ops/gate_rows.hpp"
#include "moeskip/ops/swiglu.hpp"
#include "moeskip/ops/vector.hpp"

namespace moeskip {

namespace cpu_kernels {

inline constexpr index_t parallel_elements = 1 << 15;  // fewer are done by one thread

/// act = silu(gate) · up.
template <class A> void swiglu_row(float* act, const float* gate, const float* up, index_t size) {
  for_vectors<A>(
      size, [&](index_t i, auto n) { store<A>(act + i, simd::silu<A>(load<A>(gate + i, n)) * load<A>(up + i, n), n); });
}

/// gate_up (2F) becomes weight · its gradient, act (F) = weight · silu(gate) · up; returns Σ dact · silu(gate) · up,
/// the gradient of the weight.
template <class A>
float weighted_swiglu_backward_row(float* gate_up, float* act, const float* dact, float weight, index_t F) {
  const simd::lanes<A> w(weight), one(1.f);
  simd::lanes<A> dweight = simd::zero<A>();
  for_vectors<A>(F, [&](index_t i, auto n) {
    const auto gate = load<A>(gate_up + i, n), up = load<A>(gate_up + F + i, n), d = load<A>(dact + i, n);
    const auto sigmoid = simd::sigmoid<A>(gate), silu = gate * sigmoid;
    dweight = simd::fma<A>(d, silu * up, dweight);
    if (act) store<A>(act + i, w * silu * up, n);
    // silu' = sigmoid (1 + gate (1 − sigmoid))
    store<A>(gate_up + i, w * d * up * sigmoid * (one + gate * (one - sigmoid)), n);
    store<A>(gate_up + F + i, w * d * silu, n);
  });
  return simd::reduce_add<A>(dweight);
}

}  // namespace cpu_kernels

template <> struct kernel<swiglu_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> act, mat<const float> gate_up) {
    namespace k = cpu_kernels;
    const index_t F = act.cols();
    parallel_for(
        act.rows(),
        [&](index_t first, index_t last) {
          for (index_t m = first; m < last; ++m) {
            const float* gate = gate_up.row(m).data();
            k::swiglu_row<k::arch<Isa>>(act.row(m).data(), gate, gate + F, F);
          }
        },
        32);
  }
};

template <> struct kernel<gate_rows_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, mat<float> y, mat<const float> x, mat<const float> g) {
    using A = cpu_kernels::arch<Isa>;
    parallel_for(
        x.rows(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n)
            cpu_kernels::scale_row<A>(y.row(n).data(), x.row(n).data(), sigmoid(g(n, 0)), x.cols());
        },
        64);
  }
};

template <> struct kernel<gate_rows_backward_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, mat<float> dx, mat<float> dg,
                                                         mat<const float> dy, mat<const float> x, mat<const float> g) {
    using A = cpu_kernels::arch<Isa>;
    parallel_for(
        x.rows(),
        [&](index_t first, index_t last) {
          for (index_t n = first; n < last; ++n) {
            const float* out = dy.row(n).data();
            dg(n, 0) = cpu_kernels::dot<A>(out, x.row(n).data(), x.cols()) * sigmoid_derivative(g(n, 0));
            cpu_kernels::scale_row<A>(dx.row(n).data(), out, sigmoid(g(n, 0)), x.cols());
          }
        },
        64);
  }
};

template <> struct kernel<swiglu_backward_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, mat<float> dgate_up, mat<const float> dact, mat<const float> gate_up) {
    namespace k = cpu_kernels;
    parallel_for(
        dact.rows(),
        [&](index_t first, index_t last) {
          for (index_t m = first; m < last; ++m) {
            float* row = dgate_up.row(m).data();
            if (row != gate_up.row(m).data()) std::copy_n(gate_up.row(m).data(), gate_up.cols(), row);
            k::weighted_swiglu_backward_row<k::arch<Isa>>(row, nullptr, dact.row(m).data(), 1.f, dact.cols());
          }
        },
        32);
  }
};

template <> struct kernel<accumulate_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, vec<float> y, vec<const float> x) {
    namespace k = cpu_kernels;
    parallel_for(
        y.size(),
        [&](index_t first, index_t last) {
          k::add_scaled<k::arch<Isa>>(y.data() + first, 1.f, x.data() + first, last - first);
        },
        k::parallel_elements, 64);
  }
};

template <> struct kernel<copy_into_t, on_cpu> {
  template <class B> static void run(B&, vec<float> y, vec<const float> x) {
    parallel_for(
        y.size(), [&](index_t first, index_t last) { std::copy(&x[first], &x[first] + (last - first), &y[first]); },
        cpu_kernels::parallel_elements, 64);
  }
};

template <> struct kernel<combine_t, on_cpu> {
  template <class W, class Isa, class P>
  static void run(cpu<W, Isa, P>&, vec<float> out, double a, vec<const float> x, double b, vec<const float> y) {
    namespace k = cpu_kernels;
    using A = k::arch<Isa>;
    const simd::lanes<A> of_x(static_cast<float>(a)), of_y(static_cast<float>(b));
    parallel_for(
        out.size(),
        [&](index_t first, index_t last) {
          k::for_vectors<A>(last - first, [&](index_t offset, auto n) {
            const index_t i = first + offset;
            k::store<A>(out.data() + i, of_x * k::load<A>(x.data() + i, n) + of_y * k::load<A>(y.data() + i, n), n);
          });
        },
        k::parallel_elements, 64);
  }
};

template <> struct kernel<fill_with_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, vec<float> y, double value) {
    parallel_for(
        y.size(),
        [&](index_t first, index_t last) { std::fill(y.data() + first, y.data() + last, static_cast<float>(value)); },
        cpu_kernels::parallel_elements, 64);
  }
};

template <> struct kernel<sum_of_squares_t, on_cpu> {
  /// Blocks of fixed size in float, added up in double and in order: the same for any number of threads.
  static constexpr index_t block = 4096;

  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, double& sum, vec<const float> x) {
    namespace k = cpu_kernels;
    struct sums;
    const index_t blocks = (x.size() + block - 1) / block;
    float* partial = k::thread_scratch<sums>(blocks);
    parallel_for(
        blocks,
        [&](index_t first, index_t last) {
          for (index_t b = first; b < last; ++b) {
            const float* p = x.data() + b * block;
            partial[b] = k::dot<k::arch<Isa>>(p, p, std::min(block, x.size() - b * block));
          }
        },
        8);
    for (index_t b = 0; b < blocks; ++b) sum += double(partial[b]);
  }
};

template <> struct kernel<store_weights_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, vec<W> w, vec<const float> master) {
    parallel_for(
        w.size(),
        [&](index_t first, index_t last) {
          for (index_t i = first; i < last; ++i) w[i] = W(master[i]);
        },
        cpu_kernels::parallel_elements);
  }
};

template <> struct kernel<adamw_update_t, on_cpu> {
  template <class W, class Isa, class P> static void run(cpu<W, Isa, P>&, vec<float> w, vec<float> m, vec<float> v,
                                                         vec<const float> gradient, const adamw_step& s) {
    namespace k = cpu_kernels;
    if (s.cautious) return cautious(w, m, v, gradient, s);
    using A = k::arch<Isa>;
    using lanes = simd::lanes<A>;
    const lanes beta1(float(s.beta1)), beta2(float(s.beta2)), rest1(float(1 - s.beta1)), rest2(float(1 - s.beta2));
    const lanes keep(float(1 - s.lr * s.decay)), rate(float(s.lr / s.correction1)), spread(float(1 / s.correction2));
    const lanes epsilon(float(s.epsilon)), scale(float(s.gradient_scale));
    parallel_for(
        w.size(),
        [&](index_t first, index_t last) {
          k::for_vectors<A>(last - first, [&](index_t offset, auto n) {
            const index_t i = first + offset;
            const lanes g = k::load<A>(gradient.data() + i, n) * scale;
            const lanes first_moment = beta1 * k::load<A>(m.data() + i, n) + rest1 * g;
            const lanes second_moment = beta2 * k::load<A>(v.data() + i, n) + rest2 * g * g;
            k::store<A>(m.data() + i, first_moment, n);
            k::store<A>(v.data() + i, second_moment, n);
            const lanes step = rate * first_moment / (simd::sqrt<A>(second_moment * spread) + epsilon);
            k::store<A>(w.data() + i, keep * k::load<A>(w.data() + i, n) - step, n);
          });
        },
        k::parallel_elements, 64);
  }

 private:
  static bool agree(float a, float b) { return (a > 0 && b > 0) || (a < 0 && b < 0); }

  /// In two passes: how many agree is known after the first. The compiler makes vectors of both.
  static void cautious(vec<float> w, vec<float> m, vec<float> v, vec<const float> gradient, const adamw_step& s) {
    const float beta1 = float(s.beta1), beta2 = float(s.beta2), rest1 = float(1 - s.beta1), rest2 = float(1 - s.beta2);
    const float keep = float(1 - s.lr * s.decay), rate = float(s.lr / s.correction1), scale = float(s.gradient_scale);
    const float spread = float(1 / s.correction2), epsilon = float(s.epsilon);
    std::atomic<index_t> agreeing{0};
    const auto pass = [&](auto&& body) { parallel_for(w.size(), body, cpu_kernels::parallel_elements, 64); };
    pass([&](index_t first, index_t last) {
      index_t count = 0;
      for (index_t i = first; i < last; ++i) {
        const float g = gradient[i] * scale;
        m[i] = beta1 * m[i] + rest1 * g;
        v[i] = beta2 * v[i] + rest2 * g * g;
        count += agree(m[i], gradient[i]);
      }
      agreeing += count;
    });
    const float boosted = rate * float(s.boost(agreeing, w.size()));
    pass([&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        const float step = boosted * m[i] / (std::sqrt(v[i] * spread) + epsilon);
        w[i] = keep * w[i] - (agree(m[i], gradient[i]) ? step : 0.f);
      }
    });
  }
};

}  // namespace moeskip
