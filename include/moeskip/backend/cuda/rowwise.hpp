// Phases over rows: norms and their gradients by a warp a row, losses over the vocabulary by a block a row.
#pragma once

#include <cmath>

#include "moeskip/backend/cuda/backend.hpp"
#include "moeskip/backend/cuda/block.hpp"
#include "moeskip/ops/cross_entropy.hpp"
#include "moeskip/ops/distillation.hpp"
#include "moeskip/ops/gate_rows.hpp"
#include "moeskip/ops/rms_norm.hpp"

namespace moeskip {

namespace phase {

/// 1 / sqrt(mean(x²) + eps) of a row (D), by one warp. X: a pointer, or what gives out numbers like one.
template <class Block, class X> MOESKIP_HD float reciprocal_rms(const Block& b, const X& x, index_t D, float eps) {
  constexpr int at_once = 8;  // a whole block waits for this, so it waits for memory as few times as may be
  float squares = 0;
  for (index_t i = b.lane(); i < D; i += 32 * at_once) {
    float value[at_once];
    unrolled<at_once>([&](auto j) { value[j] = i + 32 * j < D ? x[i + 32 * j] : 0.f; });
    unrolled<at_once>([&](auto j) { squares += value[j] * value[j]; });
  }
  return 1.f / std::sqrt(b.warp_sum(squares) / float(D) + eps);
}

template <class W> struct rms_norm {
  static constexpr const char* name = "rms_norm";
  mat<float> y;
  mat<const float> x;
  vec<const W> gain;
  float eps;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = b.block() * b.warps() + b.warp();
    if (n >= x.rows()) return;
    const float r = reciprocal_rms(b, &x(n, 0), x.cols(), eps);
    for (index_t i = b.lane(); i < x.cols(); i += 32) y(n, i) = x(n, i) * r * to<float>(gain[i]);
  }
};

/// dx, and what the gain's gradient is made of: scale (N) = 1 / rms of each row.
template <class W> struct rms_norm_backward {
  static constexpr const char* name = "rms_norm_backward";
  mat<float> dx;
  vec<float> scale;
  mat<const float> dy, x;
  vec<const W> gain;
  float eps;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = b.block() * b.warps() + b.warp(), D = x.cols();
    if (n >= x.rows()) return;
    const float r = reciprocal_rms(b, &x(n, 0), D, eps);
    float dot = 0;
    for (index_t i = b.lane(); i < D; i += 32) dot += dy(n, i) * to<float>(gain[i]) * x(n, i) * r;
    const float mean = b.warp_sum(dot) / float(D);
    for (index_t i = b.lane(); i < D; i += 32) dx(n, i) += r * (dy(n, i) * to<float>(gain[i]) - x(n, i) * r * mean);
    if (b.lane() == 0) scale[n] = r;
  }
};

/// parts (P, D): sums over every P-th row.
struct gain_gradient {
  static constexpr const char* name = "gain_gradient";
  mat<float> parts;
  vec<const float> scale;
  mat<const float> dy, x;
  MOESKIP_HD void operator()(index_t i) const {
    const index_t part = i / x.cols(), col = i % x.cols();
    float sum = 0;
    for (index_t n = part; n < x.rows(); n += parts.rows()) sum += dy(n, col) * x(n, col) * scale[n];
    parts.data()[i] = sum;
  }
};

/// out (D) += the sum of the rows of parts (P, D).
struct sum_of_rows {
  static constexpr const char* name = "sum_of_rows";
  vec<float> out;
  mat<const float> parts;
  MOESKIP_HD void operator()(index_t i) const {
    float sum = 0;
    for (index_t p = 0; p < parts.rows(); ++p) sum += parts(p, i);
    out[i] += sum;
  }
};

struct gate_rows_backward {
  static constexpr const char* name = "gate_rows_backward";
  mat<float> dx, dg;
  mat<const float> dy, x, g;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = b.block() * b.warps() + b.warp();
    if (n >= x.rows()) return;
    const float gate = sigmoid(g(n, 0));
    float sum = 0;
    for (index_t f = b.lane(); f < x.cols(); f += 32) {
      const float d = dy(n, f);
      sum += d * x(n, f);
      dx(n, f) = gate * d;
    }
    sum = b.warp_sum(sum);
    if (b.lane() == 0) dg(n, 0) = sum * sigmoid_derivative(g(n, 0));
  }
};

/// Highest of a row (V), and Σ exp(v − highest), by a block. Barriers `barrier` and `barrier` + 1.
struct row_softmax {
  float highest, total;
  template <class Block> MOESKIP_HD row_softmax(const Block& b, const float* row, index_t V, int barrier)
      : highest(-INFINITY), total(0) {
    for (index_t v = b.thread(); v < V; v += b.threads()) highest = row[v] > highest ? row[v] : highest;
    highest = block_max(b, highest, barrier, barrier);
    for (index_t v = b.thread(); v < V; v += b.threads()) total += std::exp(row[v] - highest);
    total = block_sum(b, total, barrier + 1, barrier + 1);
  }
  MOESKIP_HD float log_sum() const { return std::log(total) + highest; }
};

struct cross_entropy {
  static constexpr const char* name = "cross_entropy";
  static constexpr int barriers = 2;
  vec<float> losses;
  mat<float> logits;
  vec<const int> targets;
  float scale;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = b.block(), V = logits.cols();
    const float right = logits(n, targets[n]);  // before it becomes its gradient
    const float lse = row_softmax(b, &logits(n, 0), V, 0).log_sum();
    if (b.thread() == 0) losses[n] = lse - right;
    if (scale == 0) return;
    for (index_t v = b.thread(); v < V; v += b.threads())
      logits(n, v) = scale * std::exp(logits(n, v) - lse) - (v == targets[n] ? scale : 0.f);
  }
};

struct distillation {
  static constexpr const char* name = "distillation";
  static constexpr int barriers = 5;
  vec<float> losses, divergences;
  mat<float> logits;
  mat<const float> teacher;
  vec<const int> targets;
  float scale, share;
  template <class Block> MOESKIP_HD void operator()(const Block& b) const {
    const index_t n = b.block(), V = logits.cols();
    const float right = logits(n, targets[n]);
    const float lse = row_softmax(b, &logits(n, 0), V, 0).log_sum();
    const row_softmax p(b, &teacher(n, 0), V, 2);
    float divergence = 0;
    for (index_t v = b.thread(); v < V; v += b.threads()) {
      const float t = teacher(n, v), chance = std::exp(t - p.highest) / p.total;
      float& logit = logits(n, v);
      divergence += chance * (t - logit);
      logit = scale * (std::exp(logit - lse) - share * chance) - (v == targets[n] ? scale * (1 - share) : 0.f);
    }
    divergence = block_sum(b, divergence, 4, 4);
    if (b.thread() == 0) losses[n] = lse - right, divergences[n] = lse - p.log_sum() + divergence;
  }
};

}  // namespace phase

template <> struct kernel<rms_norm_t, on_cuda> {
  template <class B, class W> static void run(B&, mat<float> y, mat<const float> x, vec<const W> gain, float eps) {
    using call = detail::device_call<rms_norm_t, B>;
    call::launch(detail::warp_each(x.rows()), phase::rms_norm<W>{call::seen(y), call::seen(x), call::seen(gain), eps});
  }
};

template <> struct kernel<rms_norm_backward_t, on_cuda> {
  static constexpr index_t parts = 256;
  template <class B, class W> static void run(B&, mat<float> dx, vec<float> dgain, mat<const float> dy,
                                              mat<const float> x, vec<const W> gain, float eps) {
    using call = detail::device_call<rms_norm_backward_t, B>;
    const auto scope = call::scratch().scope();
    const vec<float> scale = call::scratch().template take<float>(x.rows());
    const mat<float> sums = call::scratch().template take<float>(std::min(parts, x.rows()), x.cols());
    call::launch(detail::warp_each(x.rows()), phase::rms_norm_backward<W>{call::seen(dx), scale, call::seen(dy),
                                                                          call::seen(x), call::seen(gain), eps});
    call::each(sums.size(), phase::gain_gradient{sums, scale, dy, x});
    call::each(dgain.size(), phase::sum_of_rows{call::seen(dgain), sums});
  }
};

template <> struct kernel<gate_rows_backward_t, on_cuda> {
  template <class B>
  static void run(B&, mat<float> dx, mat<float> dg, mat<const float> dy, mat<const float> x, mat<const float> g) {
    using call = detail::device_call<gate_rows_backward_t, B>;
    call::launch(detail::warp_each(x.rows()), phase::gate_rows_backward{call::seen(dx), call::seen(dg), call::seen(dy),
                                                                        call::seen(x), call::seen(g)});
  }
};

template <> struct kernel<cross_entropy_t, on_cuda> {
  template <class B> static void run(B&, vec<float> losses, mat<float> logits, vec<const int> targets, double scale) {
    using call = detail::device_call<cross_entropy_t, B>;
    call::launch({logits.rows(), 256, 32 * phase::cross_entropy::barriers},
                 phase::cross_entropy{call::seen(losses), call::seen(logits), call::listed(targets), float(scale)});
  }
};

template <> struct kernel<distillation_t, on_cuda> {
  template <class B> static void run(B&, vec<float> losses, vec<float> divergences, mat<float> logits,
                                     mat<const float> teacher, vec<const int> targets, double scale, double share) {
    using call = detail::device_call<distillation_t, B>;
    call::launch({logits.rows(), 256, 32 * phase::distillation::barriers},
                 phase::distillation{call::seen(losses), call::seen(divergences), call::seen(logits),
                                     call::seen(teacher), call::listed(targets), float(scale), float(share)});
  }
};

}  // namespace moeskip
