// R with experts of limited capacity, at inference too: what an expert is sent beyond it is dropped, and the token goes
// without. So OpenMoE's published code does it.                                                    arXiv:2402.01739
//   capacity = max(least, c + c mod 2),   c = ⌊factor · N · K / E⌋      N rows of a call   K of E experts a row
// First choices come before second ones, earlier rows before later ones (ops/experts.hpp).
// A token's result then depends on the tokens beside it in the call: a text depends on how it was cut into calls, so
// speculation would not be lossless, nor would sequences in a batch be what they are alone. Both refuse to compile, and
// so does missing_kv::recompute.
#pragma once

#include <algorithm>
#include <string_view>

#include "moeskip/parts/router/wrapper.hpp"

namespace moeskip::router {

template <class R> struct dropping {
  static constexpr std::string_view name = "dropping";
  using base_type = R;
  static constexpr int experts_per_token = R::experts_per_token;
  static constexpr bool drops_at_inference = true;

  R base{};
  float train_factor = 1.25f;  // of an equal share of the assignments
  float inference_factor = 2.f;
  int least = 4;  // assignments that an expert always takes

  index_t capacity(index_t tokens, int experts) const { return limit(train_factor, tokens, experts); }
  index_t capacity_at_inference(index_t tokens, int experts) const { return limit(inference_factor, tokens, experts); }

  constexpr std::string_view problem() const {
    for (const float factor : {train_factor, inference_factor})
      if (!(factor > 0 && factor < 1e6f))
        return "router.train_factor and router.inference_factor must be positive and finite";
    return least >= 1 ? "" : "router.least must be 1 or more";
  }

  template <class Self, class F> static constexpr void fields(Self& self, F&& f) {
    base_fields<R>(self.base, f), f("train_factor", self.train_factor);
    f("inference_factor", self.inference_factor), f("least", self.least);
  }
  friend constexpr bool operator==(const dropping&, const dropping&) = default;

 private:
  index_t limit(float factor, index_t tokens, int experts) const {
    const index_t share = index_t(double(factor) * double(tokens) * experts_per_token / experts);
    return std::max<index_t>(least, share + share % 2);
  }
};

}  // namespace moeskip::router
