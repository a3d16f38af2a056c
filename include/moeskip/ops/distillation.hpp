// Distillation: a student learns from the next token and from a teacher's distribution (Hinton et al. 2015,
// arXiv:1503.02531, at temperature 1).
//   loss_n = −log q_n,target     divergence_n = KL(p_n || q_n) = Σ_v p_n,v (log p_n,v − log q_n,v)      (nats)
//   p = softmax(teacher), a constant;   q = softmax(logits);   d KL / d logits = q − p
//   logits, teacher (N, V)   targets, losses, divergences (N)
#pragma once

#include <cmath>

#include "moeskip/base/math.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// losses(N) and divergences(N) = …, and logits(N,V) become the gradient of
/// scale · Σ_n ((1 − share) · loss_n + share · divergence_n). Throws config_error for a target outside [0, V).
struct distillation_t {
  static constexpr const char* name = "distillation";
  template <class B> void operator()(B& b, vec<scalar_t<B>> losses, vec<scalar_t<B>> divergences,
                                     mat<scalar_t<B>> logits, mat<const scalar_t<B>> teacher, vec<const int> targets,
                                     double scale, double share) const {
    expect_shape(name, "losses", losses, logits.rows());
    expect_shape(name, "divergences", divergences, logits.rows());
    expect_shape(name, "teacher", teacher, logits.rows(), logits.cols());
    expect_shape(name, "targets", targets, logits.rows());
    for (const int target : targets)
      MOESKIP_CHECK(config_error, target >= 0 && target < logits.cols(), "target id ", target,
                    " is outside the vocabulary of ", logits.cols());
    run_kernel<distillation_t>(b, losses, divergences, logits, teacher, targets, scale, share);
  }
};
inline constexpr distillation_t distillation{};

template <> struct kernel<distillation_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> losses, vec<T> divergences, mat<T> logits,
                                              mat<const T> teacher, vec<const int> targets, double scale,
                                              double share) {
    using std::exp, std::log;
    using R = real_t<T>;
    for (index_t n = 0; n < logits.rows(); ++n) {
      const T lse = log_sum_exp(logits.row(n).data(), logits.cols());
      losses[n] = lse - logits(n, targets[n]);
      // The teacher's real part alone: to complex steps, too, it is a constant.
      R highest = real_part(teacher(n, 0)), sum = 0;
      for (const T& t : teacher.row(n)) highest = std::max(highest, real_part(t));
      for (const T& t : teacher.row(n)) sum += exp(real_part(t) - highest);
      T divergence = lse - T(highest + log(sum));
      for (index_t v = 0; v < logits.cols(); ++v) {
        const R t = real_part(teacher(n, v)), p = exp(t - highest) / sum;
        T& logit = logits(n, v);
        divergence += p * (t - logit);
        logit = R(scale) * (exp(logit - lse) - R(share) * p);
      }
      divergences[n] = divergence;
      logits(n, targets[n]) -= R(scale * (1 - share));
    }
  }
};

}  // namespace moeskip
