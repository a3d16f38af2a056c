// Next-token loss: loss_n = log Σ_v exp logit_n,v − logit_n,target   (nats)
//   logits (N, V)   targets, losses (N)
#pragma once

#include "moeskip/base/math.hpp"
#include "moeskip/ops/contract.hpp"
#include "moeskip/tensor/view.hpp"

namespace moeskip {

/// losses(N) = …, and logits(N,V) become their own gradient, scale · (softmax − onehot), nothing where `scale` is 0. Like
/// any op it may be done late: settle() before a look at them. Throws config_error for a target outside [0, V).
struct cross_entropy_t {
  static constexpr const char* name = "cross_entropy";
  template <class B>
  void operator()(B& b, vec<scalar_t<B>> losses, mat<scalar_t<B>> logits, vec<const int> targets, double scale) const {
    expect_shape(name, "losses", losses, logits.rows());
    expect_shape(name, "targets", targets, logits.rows());
    for (const int target : targets)
      MOESKIP_CHECK(config_error, target >= 0 && target < logits.cols(), "target id ", target,
                    " is outside the vocabulary of ", logits.cols());
    run_kernel<cross_entropy_t>(b, losses, logits, targets, scale);
  }
};
inline constexpr cross_entropy_t cross_entropy{};

template <> struct kernel<cross_entropy_t, on_reference> {
  template <class B, class T> static void run(B&, vec<T> losses, mat<T> logits, vec<const int> targets, double scale) {
    for (index_t n = 0; n < logits.rows(); ++n) {
      using std::exp;
      const T lse = log_sum_exp(logits.row(n).data(), logits.cols());
      losses[n] = lse - logits(n, targets[n]);
      if (scale == 0) continue;
      for (T& logit : logits.row(n)) logit = T(real_t<T>(scale)) * exp(logit - lse);
      logits(n, targets[n]) -= T(real_t<T>(scale));
    }
  }
};

}  // namespace moeskip
