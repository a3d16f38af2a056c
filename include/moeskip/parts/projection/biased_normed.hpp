// Queries, keys and values with a bias each, and then heads of queries and keys normalised, as GLM-4.5 has them.
//                                                                                             arXiv:2508.06471
#pragma once

#include <string_view>

#include "moeskip/parts/projection/biased.hpp"
#include "moeskip/parts/projection/normed.hpp"

namespace moeskip::projection {

struct biased_normed_heads {
  static constexpr std::string_view name = "biased_normed_heads";
  static constexpr bool keeps_input = true;
  static constexpr index_t active_weights(const sizes& s) {
    return biased::active_weights(s) + normed_heads::active_weights(s);
  }

  template <class W> struct weights {
    biased::weights<W> bias;
    normed_heads::weights<W> gain;

    template <class Tensor> void tensors(const sizes& s, Tensor&& tensor) {
      bias.tensors(s, tensor), gain.tensors(s, tensor);
    }
    qkv_adjustment<std::remove_const_t<W>> adjustment(const sizes& s) const {
      return {bias.all(), gain.q, gain.k, s.norm_eps};
    }
    /// qkv (N, P): queries, keys and values, or the last two alone.
    template <class B> void forward(B& b, mat<scalar_t<B>> qkv, const sizes& s) const {
      adjust(b, qkv, adjustment(s), s.attention());
    }
    /// dqkv (N, P) on entry the gradient of the normed ones, on return of `before` (N, P), which gets its bias again;
    /// dw += ….
    template <class B> void backward(B& b, mat<scalar_t<B>> dqkv, const weights<scalar_t<B>>& dw,
                                     mat<scalar_t<B>> before, const sizes& s) const {
      bias.forward(b, before, s);
      gain.backward(b, dqkv, dw.gain, before, s);
      bias.backward(b, dqkv, dw.bias, before, s);
    }
  };
};

}  // namespace moeskip::projection
